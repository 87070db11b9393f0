"""The pass@k figure: one line with its 95 % band per evaluation, k on a logarithmic axis.

Where three or more bands lie over one another nobody can read them. There the lines are drawn without bands, and below
them the differences to the first evaluation, paired by problem, with an interval at each k.

Drawn through matplotlib's object API, so that no global state, window or display is touched.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrl.records.plot_style import FIRST_K_AT, INK, MUTED, colors_of, curve_style, style_frame, style_k_axis
from fastrl.statistics import Interval, paired_pass_difference

WIDTH_IN, AXES_HEIGHT_IN, DIFFERENCES_IN, DPI = 8.0, 4.1, 2.6, 200
LEFT_IN, TITLE_IN, X_AXIS_IN, CAPTION_LINE_IN, LABEL_CHAR_IN = 0.78, 0.62, 0.72, 0.185, 0.105
CAPTION_CHARS, NAME_CHARS, TITLE_CHARS = 114, 24, 60
MOST_BANDS = 2  # over one another
DODGE = 0.035  # of the axes' width between the intervals of two curves at one k
SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Curve:
    """pass@k in percent with its 95 % band, at each k."""

    ks: list[int]
    means: list[float]
    lows: list[float]
    highs: list[float]


def plot_pass_at_k(
    evaluations: dict[str, dict], path: Path | Sequence[Path], *, title: str = "", caption: str = ""
) -> None:
    """Draw pass@k in percent against k for evaluations by name, and save the figure at one or several paths.

    A first evaluation called "base" is grey. Numbers at the ends of a line are its pass@1 and its pass@k at the largest
    k. The caption is wrapped under the figure, which is 8 inches wide; PNG at 200 dpi. Missing folders are created.
    Raises ValueError for no evaluations or a suffix other than .png, .svg, .pdf.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(item) for item in path]
    for item in paths:
        if item.suffix not in SUFFIXES:
            raise ValueError(f"cannot draw to {item}; the suffix must be one of {', '.join(SUFFIXES)}")
    if not evaluations:
        raise ValueError("nothing to plot: no evaluations were given")
    figure = pass_at_k_figure(evaluations, title, caption)
    for item in paths:
        _save(figure, item)


def pass_at_k_figure(evaluations: dict[str, dict], title: str = "", caption: str = ""):
    """The figure of `plot_pass_at_k` as a `matplotlib.figure.Figure` that no window shows."""
    curves = {name: _curve(evaluation["pass_at_k"]) for name, evaluation in evaluations.items()}
    names = list(curves)
    is_crowded = _most_bands(list(curves.values())) > MOST_BANDS
    found = _differences(evaluations) if is_crowded else {}
    caption = f"{caption} {_explained(names[0], is_crowded, bool(found))}".strip()
    last_k = max(curve.ks[-1] for curve in curves.values())
    labels = [_end_label(name, curve.ks[-1], curve.means[-1], last_k) for name, curve in curves.items()]
    right_in = 0.15 + LABEL_CHAR_IN * max(map(len, labels))
    title = title or title_of(evaluations)
    figure, axes, axes_below = _empty_figure(title, caption, right_in, has_differences=bool(found))
    colors = colors_of(names)
    for i, curve in enumerate(curves.values()):
        if not found:
            _draw_band(axes, curve, colors[i])
        axes.plot(curve.ks, curve.means, color=colors[i], **curve_style(i, len(curves)))
    _style_axes(axes, sorted({k for curve in curves.values() for k in curve.ks}))
    _write_beside(axes, 1.012, [curve.means[-1] for curve in curves.values()], labels, colors, "left", size=11)
    if last_k > 1:
        firsts = [curve.means[0] for curve in curves.values()]
        _write_beside(axes, FIRST_K_AT - 0.015, firsts, [f"{first:.1f}" for first in firsts], colors, "right", size=9.5)
    if found:
        _draw_differences(axes_below, found, dict(zip(names, colors, strict=True)))
        axes.set_xlim(axes_below.get_xlim())
    return figure


def _explained(first: str, is_crowded: bool, has_differences: bool) -> str:
    """What the caption says of bands and differences."""
    if has_differences:
        return f"Below: differences to {first}, paired by problem, 95 % bootstrap intervals."
    others = " Not of the same problems: no paired differences." if is_crowded else ""
    return f"Bands: 95 % bootstrap over problems.{others}"


def title_of(evaluations: dict[str, dict]) -> str:
    """Task, split, size and model, as far as the evaluations name them and agree: `math test · 300 × 16 · a model`."""

    def shared(name: str) -> str:
        values = {str(evaluation.get(name) or "") for evaluation in evaluations.values()}
        return values.pop() if len(values) == 1 else ""

    sizes = [shared("num_problems"), shared("num_samples")]
    size = f"{sizes[0]} problems × {sizes[1]} samples" if all(sizes) else ""
    model = shared("model")[-NAME_CHARS:]
    parts = (f"{shared('task')} {shared('split')}".strip(), size, model)
    return textwrap.shorten(" · ".join(filter(None, parts)), TITLE_CHARS, placeholder=" …")


def _curve(intervals: dict[str, dict]) -> Curve:
    ks = sorted(map(int, intervals))
    return Curve(ks, *([100 * intervals[str(k)][end] for k in ks] for end in ("mean", "low", "high")))


def _most_bands(curves: list[Curve]) -> int:
    """How many bands lie over one point, at the worst k."""
    ends_at_k = [
        [(curve.lows[i], curve.highs[i]) for curve in curves for i, own in enumerate(curve.ks) if own == k]
        for k in {k for curve in curves for k in curve.ks}
    ]
    return max(sum(low <= start <= high for low, high in ends) for ends in ends_at_k for start, _ in ends)


def _differences(evaluations: dict[str, dict]) -> dict[str, dict[int, Interval]]:
    """Every other evaluation minus the first; none where they are not of the same problems."""
    (_, base), *others = evaluations.items()
    try:
        return {name: paired_pass_difference(evaluation, base) for name, evaluation in others}
    except (ValueError, KeyError):  # other problems, or none are listed
        return {}


def _draw_band(axes, curve: Curve, color: str) -> None:
    axes.fill_between(curve.ks, curve.lows, curve.highs, color=color, alpha=0.14, linewidth=0)
    if len(curve.ks) == 1:  # a band has no width there
        axes.vlines(curve.ks, curve.lows, curve.highs, color=color, alpha=0.4, linewidth=6)


def _draw_differences(axes, found: dict[str, dict[int, Interval]], colors: dict[str, str]) -> None:
    """An interval for each evaluation at each k, side by side."""
    ks = sorted({k for difference in found.values() for k in difference})
    style_frame(axes)
    style_k_axis(axes, ks)
    low, high = axes.get_xlim()
    step = (high / low) ** min(DODGE, 0.5 / len(ks) / len(found))
    axes.set_xlim(low, high * step ** (len(found) / 2))
    axes.axhline(0, color=MUTED, linewidth=1)
    for i, (name, difference) in enumerate(found.items()):
        style = curve_style(i + 1, len(colors)) | {"linestyle": "none", "markersize": 5, "linewidth": 0}
        places = [k * step ** (i - (len(found) - 1) / 2) for k in difference]
        means, lows, highs = ([100 * getattr(d, end) for d in difference.values()] for end in ("mean", "low", "high"))
        axes.vlines(places, lows, highs, color=colors[name], linewidth=2)
        axes.plot(places, means, color=colors[name], **style)
    axes.set_ylabel("difference, points", size=11, color=INK, labelpad=8)


def _end_label(name: str, k: int, mean: float, last_k: int) -> str:
    shown = name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 1] + "…"
    return f"{shown}  {mean:.1f}" + ("" if k == last_k else f" @{k}")


def _empty_figure(title: str, caption: str, right_in: float, *, has_differences: bool):
    """(figure, axes, axes below for differences or None)."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(caption, CAPTION_CHARS)
    top = TITLE_IN if title else 0.2
    caption_in = CAPTION_LINE_IN * len(lines) + (0.1 if lines else 0)
    below_in = DIFFERENCES_IN + X_AXIS_IN if has_differences else 0
    bottom = X_AXIS_IN + caption_in + below_in
    height = top + AXES_HEIGHT_IN + bottom
    figure = Figure(figsize=(WIDTH_IN, height), facecolor="white")

    def axes_at(bottom_in: float, height_in: float):
        width = (WIDTH_IN - LEFT_IN - right_in) / WIDTH_IN
        return figure.add_axes((LEFT_IN / WIDTH_IN, bottom_in / height, width, height_in / height))

    axes = axes_at(bottom, AXES_HEIGHT_IN)
    below = axes_at(X_AXIS_IN + caption_in, DIFFERENCES_IN) if has_differences else None
    left = 0.18 / WIDTH_IN
    figure.text(left, 1 - 0.2 / height, title, ha="left", va="top", size=14, weight="bold", color=INK, parse_math=False)
    text = "\n".join(lines)
    figure.text(
        left, 0.1 / height, text, ha="left", va="bottom", size=9, color=MUTED, parse_math=False, linespacing=1.35
    )
    return figure, axes, below


def _style_axes(axes, ks: list[int]) -> None:
    style_frame(axes)
    style_k_axis(axes, ks)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(101.0, high))
    axes.set_ylabel("pass@k, % of problems", size=11, color=INK, labelpad=8)


def _write_beside(axes, x: float, heights: list[float], texts: list[str], colors: list[str], align: str, size: float):
    """Write texts at the fraction x of the axes' width, at their heights or far enough apart to be read."""
    from matplotlib.patheffects import withStroke

    low, high = axes.get_ylim()
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = _spread([heights[i] for i in order], size * 0.0056 * (high - low), high)
    for i, height in zip(order, placed, strict=True):
        style = {"color": colors[i], "size": size, "weight": "bold", "va": "center", "ha": align, "parse_math": False}
        halo = [withStroke(linewidth=3, foreground="white")]
        axes.text(x, height, texts[i], transform=axes.get_yaxis_transform(), path_effects=halo, **style)


def _spread(sorted_heights: list[float], gap: float, ceiling: float) -> list[float]:
    """The closest heights, in squares, that lie `gap` apart and under `ceiling`: isotonic regression by pooling."""
    pools: list[tuple[float, int]] = []  # sum and number of the heights less i * gap
    for i, height in enumerate(sorted_heights):
        total, count = height - i * gap, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            total, count = total + pools[-1][0], count + pools.pop()[1]
        pools.append((total, count))
    limit = ceiling - gap * (len(sorted_heights) - 1)
    starts = [min(total / count, limit) for total, count in pools for _ in range(count)]
    return [start + i * gap for i, start in enumerate(starts)]


def _save(figure, path: Path) -> None:
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    undated = {} if path.suffix == ".png" else {"CreationDate" if path.suffix == ".pdf" else "Date": None}
    with rc_context({"svg.hashsalt": "fastrl"}):  # with no date either, equal figures are equal files
        figure.savefig(path, dpi=DPI, metadata=undated)
