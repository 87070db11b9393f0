"""Small line charts for a page without scripts: points, bands and ticks in the pixels of an SVG of WIDE × HIGH."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 380, 210, 50, 10, 8, 24
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6e7781", "#8c6d31")
DASHES = ("", "6 3", "2 3")  # when the colours begin again
BASE_COLOR = "#6e7781"

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """points, band: as SVG's attribute of that name; an empty band is not drawn."""

    name: str
    color: str
    dash: str
    points: str
    band: str = ""


@dataclass(frozen=True)
class Panel:
    """x_ticks, y_ticks: (pixel, text)."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Axes:
    """From numbers to pixels; x is a logarithm already where it should be one."""

    xs: Sequence[float]
    ys: Sequence[float]

    def x(self, value: float) -> float:
        low, high = min(self.xs), max(self.xs)
        return round(LEFT + (value - low) / ((high - low) or 1) * (WIDE - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = min(self.ys), max(self.ys)
        return round(HIGH - BOTTOM - (value - low) / ((high - low) or 1) * (HIGH - TOP - BOTTOM), 1)

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)


def style(number: int) -> tuple[str, str]:
    """Colour and dashes of the run of this number."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def curve_panel(title: str, curves: Mapping[str, Sequence[Point]], names: Sequence[str]) -> Panel | None:
    """Curves over steps. names: of all runs, by which colours go. None where there is no point."""
    everything = [point for points in curves.values() for point in points]
    if not everything:
        return None
    axes = Axes([x for x, _ in everything], [y for _, y in everything])
    lines = [Line(n, *style(names.index(n)), axes.path(points)) for n, points in curves.items() if points]
    x_ticks = [(axes.x(v), f"{v:g}") for v in ticks(min(axes.xs), max(axes.xs), 6) if v == int(v)]
    return Panel(title, lines, x_ticks, [(axes.y(v), f"{v:g}") for v in ticks(min(axes.ys), max(axes.ys), 5)])


def pass_panels(evaluations: Mapping[str, dict]) -> list[Panel]:
    """pass@k of each evaluation with its own band, beside the first one's line, all on the same axes."""
    names = list(evaluations)
    curves = {n: {int(k): v for k, v in e["pass_at_k"].items()} for n, e in evaluations.items()}
    ends = [100 * v[end] for curve in curves.values() for v in curve.values() for end in ("low", "high")]
    axes = Axes([math.log2(k) for curve in curves.values() for k in curve], ends)
    ks = sorted({k for curve in curves.values() for k in curve})
    x_ticks = [(axes.x(math.log2(k)), str(k)) for k in ks[:: max(1, -(-len(ks) // 7))]]
    y_ticks = [(axes.y(v), f"{v:g} %") for v in ticks(min(ends), max(ends), 5)]
    base = Line(names[0], BASE_COLOR, "4 3", axes.path(_ends(curves[names[0]], "mean")))
    panels = []
    for name, curve in curves.items():
        band = axes.path([*_ends(curve, "low"), *reversed(_ends(curve, "high"))])
        own = Line(name, style(names.index(name))[0], "", axes.path(_ends(curve, "mean")), band)
        panels.append(Panel(name, [own] if name == names[0] else [base, own], x_ticks, y_ticks))
    return panels


def _ends(curve: Mapping[int, dict], end: str) -> list[Point]:
    return [(math.log2(k), 100 * curve[k][end]) for k in sorted(curve)]


def ticks(low: float, high: float, most: int) -> list[float]:
    """So many round numbers at most."""
    if not high > low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / most))
    size = next(n * power for n in (1, 2, 5, 10, 20) if (high - low) / (n * power) <= most)
    return [float(f"{i * size:.12g}") for i in range(math.ceil(low / size), math.floor(high / size) + 1)]
