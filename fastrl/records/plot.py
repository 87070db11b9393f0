"""The pass@k figure: one line with its 95 % band per evaluation, k on a logarithmic axis.

Drawn through matplotlib's object API, so that no global state, window or display is touched. The colours are Okabe and
Ito's (2008), which colour-blind readers tell apart; the markers differ too, for print.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

INK, MUTED, GRID = "#1f2328", "#57606a", "#e4e7eb"
BASE_COLOR = "#6e7781"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
WIDTH_IN, AXES_HEIGHT_IN, DPI = 8.0, 4.1, 200
LEFT_IN, TITLE_IN, X_AXIS_IN, CAPTION_LINE_IN, LABEL_CHAR_IN = 0.78, 0.62, 0.72, 0.185, 0.105
CAPTION_CHARS, NAME_CHARS = 114, 24
FIRST_K_AT = 0.095  # of the axes' width; the first values are written to its left
SUFFIXES = (".png", ".svg", ".pdf")


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
    curves = {name: _curve(evaluation) for name, evaluation in evaluations.items()}
    last_k = max(ks[-1] for ks, *_ in curves.values())
    labels = [_end_label(name, ks[-1], means[-1], last_k) for name, (ks, means, *_) in curves.items()]
    figure, axes = _empty_figure(title, caption, right_in=0.15 + LABEL_CHAR_IN * max(map(len, labels)))
    colors = _colors(list(curves))
    for i, (ks, means, lows, highs) in enumerate(curves.values()):
        axes.fill_between(ks, lows, highs, color=colors[i], alpha=0.14, linewidth=0)
        if len(ks) == 1:  # a band has no width there
            axes.vlines(ks, lows, highs, color=colors[i], alpha=0.4, linewidth=6)
        axes.plot(ks, means, color=colors[i], marker=MARKERS[i % len(MARKERS)], markersize=5.5, linewidth=2.2)
    _style_axes(axes, sorted({k for ks, *_ in curves.values() for k in ks}))
    _write_beside(axes, 1.012, [means[-1] for _, means, *_ in curves.values()], labels, colors, "left", size=11)
    if last_k > 1:
        firsts = [means[0] for _, means, *_ in curves.values()]
        _write_beside(axes, FIRST_K_AT - 0.015, firsts, [f"{first:.1f}" for first in firsts], colors, "right", size=9.5)
    return figure


def _curve(evaluation: dict) -> tuple[list[int], list[float], list[float], list[float]]:
    ks = sorted(int(k) for k in evaluation["pass_at_k"])
    intervals = [evaluation["pass_at_k"][str(k)] for k in ks]
    return ks, *([100 * interval[end] for interval in intervals] for end in ("mean", "low", "high"))


def _end_label(name: str, k: int, mean: float, last_k: int) -> str:
    shown = name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 1] + "…"
    return f"{shown}  {mean:.1f}" + ("" if k == last_k else f" @{k}")


def _colors(names: list[str]) -> list[str]:
    palette = list(COLORS) * (len(names) // len(COLORS) + 1)
    return [BASE_COLOR, *palette][: len(names)] if names[0] == "base" else palette[: len(names)]


def _empty_figure(title: str, caption: str, right_in: float):
    from matplotlib.figure import Figure

    lines = textwrap.wrap(caption, CAPTION_CHARS)
    top = TITLE_IN if title else 0.2
    bottom = X_AXIS_IN + CAPTION_LINE_IN * len(lines) + (0.1 if lines else 0)
    height = top + AXES_HEIGHT_IN + bottom
    figure = Figure(figsize=(WIDTH_IN, height), facecolor="white")
    size = (WIDTH_IN - LEFT_IN - right_in) / WIDTH_IN, AXES_HEIGHT_IN / height
    axes = figure.add_axes((LEFT_IN / WIDTH_IN, bottom / height, *size))
    left = 0.18 / WIDTH_IN
    figure.text(left, 1 - 0.2 / height, title, ha="left", va="top", size=14, weight="bold", color=INK, parse_math=False)
    text = "\n".join(lines)
    figure.text(
        left, 0.1 / height, text, ha="left", va="bottom", size=9, color=MUTED, parse_math=False, linespacing=1.35
    )
    return figure, axes


def _style_axes(axes, ks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    octaves = max(1.0, math.log2(ks[-1] / ks[0])) / (0.98 - FIRST_K_AT)
    axes.set_xlim(ks[0] * 2 ** (-FIRST_K_AT * octaves), ks[-1] * 2 ** (0.02 * octaves))
    axes.set_xticks(_ticks(ks), [str(k) for k in _ticks(ks)])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(101.0, high))
    axes.set_xlabel("k, samples per problem", size=11, color=INK, labelpad=6)
    axes.set_ylabel("pass@k, % of problems", size=11, color=INK, labelpad=8)
    axes.tick_params(length=0, labelsize=10.5, labelcolor=MUTED, pad=6)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)


def _ticks(ks: list[int]) -> list[int]:
    """Powers of two, and the last k where it is no closer than half an octave to the one before."""
    powers = [k for k in ks if k & (k - 1) == 0]
    has_room = not powers or math.log2(ks[-1] / powers[-1]) >= 0.5
    return [*powers, ks[-1]] if has_room else powers


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
