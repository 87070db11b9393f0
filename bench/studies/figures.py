"""The study's figures: pass@k by objective, and the path of every objective through pass@1 and pass@32."""

from pathlib import Path

import results
from bands import Resamples, band, pass_values
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import CellResult

from fastrl.records.plot import BASE_COLOR, COLORS
from fastrl.statistics import ks_up_to

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
PATH_K = 32  # pass@64 of 64 samples moves by whole problems


def _style(name: str) -> dict:
    color, marker = STYLES[name]
    return {"color": color, "marker": marker, "markersize": 4}


def draw_curves(cells: dict[str, CellResult], path: Path) -> None:
    """pass@k of every cell with its band over problems and seeds; in grey the model that all of them began from."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    _curves(figure.add_subplot(), cells)
    figure.savefig(path, dpi=120)


def draw_paths(cells: dict[str, CellResult], path: Path) -> None:
    """Means over seeds along the runs: to the right is more accurate, up is more diverse."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    _paths(figure.add_subplot(), cells)
    figure.savefig(path, dpi=120)


def draw_overview(cells: dict[str, CellResult], path: Path) -> None:
    """Four objectives: at equal steps on the left, at equal pass@1 on the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {name: cells[name] for name in SHOWN if name in cells}
    _curves(left, shown)
    _paths(right, shown)
    left.set_title("after equal steps")
    right.set_title("along the runs")
    figure.savefig(path, dpi=120)


def draw_bases(by_steps: dict[int, dict[str, CellResult]], long: dict[str, CellResult], path: Path) -> None:
    """pass@k from initial models of so many supervised steps, weakest first; on the right the paths of longer runs."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    panels = figure.subplots(1, len(by_steps) + 1)
    for axes, (steps, cells) in zip(panels[:-1], sorted(by_steps.items()), strict=True):
        _curves(axes, cells)
        axes.set(title=f"from {steps} supervised steps", ylim=(0, 102))
    _paths(panels[-1], long)
    panels[-1].set_title(f"along {next(iter(long.values())).rows[0]['num_steps']} steps, from 1600")
    figure.savefig(path, dpi=120)


def _curves(axes: Axes, cells: dict[str, CellResult]) -> None:
    start = next(iter(cells.values())).start
    entries = [("base", [start["num_correct"]], start["num_samples"], {"color": BASE_COLOR, "marker": "."})]
    entries += [(n, c.counts_SP, c.num_samples, _style(n)) for n, c in cells.items()]
    for name, counts_SP, num_samples, style in entries:
        ks = ks_up_to(num_samples)
        bands = [band(counts_SP, num_samples, k) for k in ks]
        axes.plot(ks, [100 * b.mean for b in bands], label=name, **style)
        low, high = ([100 * getattr(b, end) for b in bands] for end in ("low", "high"))
        axes.fill_between(ks, low, high, color=style["color"], alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="k, samples per problem", ylabel="pass@k, % of problems")
    axes.legend(frameon=False)


def _paths(axes: Axes, cells: dict[str, CellResult]) -> None:
    for name, cell in cells.items():
        if "followed" not in results.base() or not cell.has_path:
            continue
        num_samples = cell.rows[0]["followed"]["num_samples"]
        counts_STP = cell.path_STP
        plain = Resamples.draw(counts_STP.shape[0], counts_STP.shape[2], num=1)
        values = [pass_values(counts_STP, num_samples, k).transpose(0, 2, 1) for k in (1, PATH_K)]
        x_T, y_T = (100 * plain.means(v)[0] for v in values)
        axes.plot(x_T, y_T, label=name, **_style(name))
    axes.set(xlabel="pass@1, %", ylabel=f"pass@{PATH_K}, %")
    if axes.lines:
        axes.legend(frameon=False)
