"""How every figure looks: inks, one style a curve, and an axis of k.

The colours are Okabe and Ito's (2008), which colour-blind readers tell apart. A curve has dashes and a marker of its
own as well, for print, and so that two curves in one place are both seen: earlier ones are drawn thicker.
"""

import math
from typing import Any

INK, MUTED, GRID = "#1f2328", "#57606a", "#e4e7eb"
BASE_COLOR = "#6e7781"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
DASHES = ("solid", (0, (6, 1.5)), (0, (3, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1)))
FIRST_K_AT = 0.095  # of the axes' width; the first values are written to its left


def colors_of(names: list[str]) -> list[str]:
    """A colour a curve; a first one called "base" is grey."""
    palette = list(COLORS) * (len(names) // len(COLORS) + 1)
    return [BASE_COLOR, *palette][: len(names)] if names[0] == "base" else palette[: len(names)]


def curve_style(number: int, count: int) -> dict[str, Any]:
    """Marker, dashes and width of curve `number` of `count`, for matplotlib's `plot`."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 1.8 + 1.4 * (count - 1 - number) / max(count - 1, 1) if count > 1 else 2.2,
        "markersize": 5.5 + 2.0 * (count - 1 - number) / max(count - 1, 1),
    }


def style_k_axis(axes, ks: list[int], left: float = FIRST_K_AT) -> None:
    """k on a logarithmic axis, written 1, 2, 4, …; `left`: share of the width before the first k."""
    axes.set_xscale("log", base=2)
    octaves = max(1.0, math.log2(ks[-1] / ks[0])) / (0.98 - left)
    axes.set_xlim(ks[0] * 2 ** (-left * octaves), ks[-1] * 2 ** (0.02 * octaves))
    axes.set_xticks(k_ticks(ks), [str(k) for k in k_ticks(ks)])
    axes.minorticks_off()
    axes.set_xlabel("k, samples per problem", size=11, color=INK, labelpad=6)


def k_ticks(ks: list[int]) -> list[int]:
    """Powers of two, and the last k where it is no closer than half an octave to the one before."""
    powers = [k for k in ks if k & (k - 1) == 0]
    has_room = not powers or math.log2(ks[-1] / powers[-1]) >= 0.5
    return [*powers, ks[-1]] if has_room else powers


def style_frame(axes) -> None:
    """Quiet ticks, a horizontal grid, no box."""
    axes.tick_params(length=0, labelsize=10.5, labelcolor=MUTED, pad=6)
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
