"""The study's two figures: pass@k by objective, and the path of every objective through pass@1 and pass@64."""

from pathlib import Path

import results
from bands import Resamples, band, pass_values
from matplotlib.figure import Figure
from results import CellResult

from fastrl.records.plot import BASE_COLOR, COLORS
from fastrl.statistics import ks_up_to

MARKERS = "osD^vPX<>"


def _style(index: int) -> dict:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}


def draw_curves(cells: dict[str, CellResult], path: Path) -> None:
    """pass@k of every cell with its band over problems and seeds; the base in grey."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    start = results.base()["test"]["num_samples"]
    entries = [("base", results.base_counts(), start, {"color": BASE_COLOR, "marker": "."})]
    entries += [(n, c.counts_SP, c.num_samples, _style(i)) for i, (n, c) in enumerate(cells.items())]
    for name, counts_SP, num_samples, style in entries:
        ks = ks_up_to(num_samples)
        bands = [band(counts_SP, num_samples, k) for k in ks]
        axes.plot(ks, [100 * b.mean for b in bands], label=name, **style)
        low, high = ([100 * getattr(b, end) for b in bands] for end in ("low", "high"))
        axes.fill_between(ks, low, high, color=style["color"], alpha=0.1, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="k, samples per problem", ylabel="pass@k, % of problems")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_paths(cells: dict[str, CellResult], path: Path) -> None:
    """Means over seeds along the runs: to the right is more accurate, up is more diverse."""
    if "followed" not in results.base():
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, cell) in enumerate(cells.items()):
        if not cell.has_path:
            continue
        num_samples = cell.rows[0]["followed"]["num_samples"]
        counts_STP = cell.path_STP
        plain = Resamples.draw(counts_STP.shape[0], counts_STP.shape[2], num=1)
        values = [pass_values(counts_STP, num_samples, k).transpose(0, 2, 1) for k in (1, 64)]
        x_T, y_T = (100 * plain.means(v)[0] for v in values)
        axes.plot(x_T, y_T, label=name, **_style(i))
    axes.set(xlabel="pass@1, %", ylabel="pass@64, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
