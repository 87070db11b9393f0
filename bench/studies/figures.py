"""The study's figures: pass@k by objective, and the path of every objective through pass@1 and pass@32.

Where three bands lie over one another the lines come without them, and beside them stand the differences to PSR,
paired by problem and seed, with an interval at each k.
"""

from pathlib import Path

import results
from bands import Resamples, band, mean_band, pass_values
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import CellResult, of_common_seeds

from fastrl.records.plot_style import BASE_COLOR, COLORS, DASHES, MUTED, style_frame, style_k_axis
from fastrl.statistics import Interval, ks_up_to

BLUE, RED, GREEN, PINK, YELLOW, SKY = COLORS
STYLES = {
    "psr": (BLUE, "o"),
    "nsr": (RED, "o"),
    "w-reinforce-0.05": (GREEN, "s"),
    "w-reinforce-0.1": (GREEN, "o"),
    "w-reinforce-0.2": (GREEN, "D"),
    "w-reinforce-1": (GREEN, "^"),
    "grpo": (PINK, "o"),
    "dr-grpo": (YELLOW, "o"),
    "rloo": (SKY, "o"),
}
SHOWN = ("psr", "nsr", "w-reinforce-0.1", "grpo")  # in the figure of the front page
TOY = "Countdown, 0.86 M parameters"
DODGE = 0.03  # of the width of the axis of k, between the intervals of two cells
PATH_K = 32  # pass@64 of 64 samples moves by whole problems


def _style(name: str) -> dict:
    """Earlier names thicker and later ones dashed, so that two curves in one place are both seen."""
    color, marker = STYLES[name]
    number = list(STYLES).index(name)
    width = 2.6 - 1.2 * number / len(STYLES)
    return {"color": color, "marker": marker, "markersize": 4, "linewidth": width, "linestyle": DASHES[number % 5]}


def draw_curves(cells: dict[str, CellResult], path: Path, of: str = TOY) -> None:
    """pass@k of every cell, in grey the model that all of them began from; beside it the differences to one of them.

    of: task and model, for the title.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, cells)
    _differences(right, cells)
    figure.suptitle(_described(cells, of=of))
    figure.savefig(path, dpi=120)


def draw_paths(cells: dict[str, CellResult], path: Path) -> None:
    """Means over seeds along the runs: to the right is more accurate, up is more diverse."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    _paths(figure.add_subplot(), cells)
    figure.suptitle(_described(cells, "followed"))
    figure.savefig(path, dpi=120)


def draw_overview(cells: dict[str, CellResult], path: Path) -> None:
    """Four objectives: at equal steps, their differences there, and along the runs."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    shown = {name: cells[name] for name in SHOWN if name in cells}
    _curves(left, shown)
    _differences(middle, shown)
    _paths(right, shown)
    left.set_title("after equal steps")
    right.set_title("along the runs")
    figure.suptitle(_described(shown))
    figure.savefig(path, dpi=120)


def draw_bases(by_steps: dict[int, dict[str, CellResult]], long: dict[str, CellResult], path: Path) -> None:
    """pass@k from initial models of so many supervised steps, weakest first; below, the differences to PSR; on the
    right the paths of longer runs."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    panels = figure.subplots(2, len(by_steps) + 1)
    for (above, below), (steps, cells) in zip(panels.T[:-1], sorted(by_steps.items()), strict=True):
        _curves(above, cells)
        above.set(title=f"from {steps} supervised steps", ylim=(0, 102))
        _differences(below, cells)
    last, empty = panels.T[-1]
    _paths(last, long)
    last.set_title(f"along {next(iter(long.values())).rows[0]['num_steps']} steps, from 1600")
    empty.set_visible(False)
    figure.suptitle(_described({f"{steps}.{n}": c for steps, cells in by_steps.items() for n, c in cells.items()}))
    figure.savefig(path, dpi=120)


def _described(cells: dict[str, CellResult], part: str = "test", of: str = TOY) -> str:
    """What is drawn: task and model, problems × samples, seeds."""
    first = next(iter(cells.values()))
    counts = first.counts_SP if part == "test" else first.path_STP
    fewest, *most = sorted({len(cell.seeds) for cell in cells.values()})
    seeds = f"{fewest} to {most[-1]} seeds" if most else f"{fewest} seed{'s' * (fewest > 1)}"
    return f"{of}: {counts.shape[-1]} problems × {first.rows[0][part]['num_samples']} samples, {seeds}"


def _curves(axes: Axes, cells: dict[str, CellResult]) -> None:
    """pass@k of every cell and of the base; a band only where one cell is drawn, beside the base's."""
    start = next(iter(cells.values())).start
    base = {"color": BASE_COLOR, "marker": ".", "linewidth": 2}
    entries = [("base", [start["num_correct"]], start["num_samples"], base)]
    entries += [(n, c.counts_SP, c.num_samples, _style(n)) for n, c in cells.items()]
    for name, counts_SP, num_samples, style in entries:
        ks = ks_up_to(num_samples)
        bands = [band(counts_SP, num_samples, k) for k in ks]
        axes.plot(ks, [100 * b.mean for b in bands], label=name, **style)
        if len(cells) == 1:
            low, high = ([100 * getattr(b, end) for b in bands] for end in ("low", "high"))
            axes.fill_between(ks, low, high, color=style["color"], alpha=0.1, linewidth=0)
    style_frame(axes)
    style_k_axis(axes, sorted({k for *_, num_samples, _ in entries for k in ks_up_to(num_samples)}), left=0.02)
    axes.set_ylabel("pass@k, % of problems")
    axes.legend(frameon=False)


def _differences(axes: Axes, cells: dict[str, CellResult]) -> None:
    """Every cell minus PSR, or the first: on the seeds that both have, an interval at each k or every other."""
    first = "psr" if "psr" in cells else next(iter(cells))
    found = {name: _difference(cell, cells[first]) for name, cell in cells.items() if name != first}
    found = {name: difference for name, difference in found.items() if difference}
    style_frame(axes)
    if not found:
        axes.set_visible(False)
        return
    ks = sorted({k for difference in found.values() for k in difference})
    shown = ks if len(ks) < 6 else ks[::2]  # room for as many intervals as cells
    step = (ks[-1] / ks[0]) ** min(DODGE, 0.6 / len(shown) / max(len(found), 1))
    axes.axhline(0, color=MUTED, linewidth=1)
    for i, (name, difference) in enumerate(found.items()):
        color, marker = STYLES[name]
        places = [k * step ** (i - (len(found) - 1) / 2) for k in shown]
        values = [difference[k] for k in shown]
        axes.vlines(places, [100 * v.low for v in values], [100 * v.high for v in values], color=color, linewidth=1.6)
        axes.plot(places, [100 * v.mean for v in values], color=color, marker=marker, markersize=4, linestyle="none")
    style_k_axis(axes, ks, left=0.06)
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * step ** (len(found) / 2))
    axes.set(title=f"difference to {first}, paired", ylabel="points of pass@k")


def _difference(cell: CellResult, reference: CellResult) -> dict[int, Interval]:
    """By k; empty where they have no seed in common."""
    if not (pair := of_common_seeds([cell, reference])):
        return {}
    a, b = pair
    ks = ks_up_to(min(a.num_samples, b.num_samples))
    values = {k: [pass_values(one.counts_SP, one.num_samples, k) for one in (a, b)] for k in ks}
    return {k: mean_band(of_a - of_b) for k, (of_a, of_b) in values.items()}


def _paths(axes: Axes, cells: dict[str, CellResult]) -> None:
    """A trail a cell, from a ring to an arrow's head."""
    for name, cell in cells.items():
        if "followed" not in results.base() or not cell.has_path:
            continue
        num_samples = cell.rows[0]["followed"]["num_samples"]
        counts_STP = cell.path_STP
        plain = Resamples.draw(counts_STP.shape[0], counts_STP.shape[2], num=1)
        values = [pass_values(counts_STP, num_samples, k).transpose(0, 2, 1) for k in (1, PATH_K)]
        x_T, y_T = (100 * plain.means(v)[0] for v in values)
        style = _style(name)
        axes.plot(x_T, y_T, label=name, **style | {"markersize": 3})
        axes.plot(x_T[:1], y_T[:1], color=MUTED, marker="o", markersize=9, fillstyle="none", linestyle="none")
        arrow = {"arrowstyle": "-|>", "color": style["color"], "linewidth": style["linewidth"], "mutation_scale": 18}
        axes.annotate("", xy=(x_T[-1], y_T[-1]), xytext=(x_T[-2], y_T[-2]), arrowprops=arrow)
    style_frame(axes)
    axes.set(xlabel="pass@1, %", ylabel=f"pass@{PATH_K}, %")
    if axes.lines:
        axes.legend(frameon=False)
