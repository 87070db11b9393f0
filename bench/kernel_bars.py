"""What a kernel may lose to its floor on an H100, and whether it does.

A bar is a ratio to a floor of the same run. At 2048 rows it is one of wall times, where the host's launches are part of
what is paid; at more rows of the device's, or of the wall's where a result has no other (`clock` says which).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from machine import Row

FLOORS = {
    "log-prob + entropy": "floor: read",
    "loss + gradient": "floor: read + write",
    "loss + dX + dW": "floor: three products",
}
HALF_IDLE = "fastrl, half idle"


@dataclass(frozen=True)
class Bar:
    """most: times the floor's milliseconds; most_gb: extra memory in 10⁹ bytes."""

    most: float
    is_wall: bool = False
    most_gb: float | None = None


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    ratio: float
    clock: str
    extra_gb: float | None

    @property
    def is_met(self) -> bool:
        fits = self.bar.most_gb is None or (self.extra_gb is not None and self.extra_gb <= self.bar.most_gb)
        return self.ratio <= self.bar.most and fits

    def __str__(self) -> str:
        memory = f", {self.extra_gb:.1f} GB of {self.bar.most_gb}" if self.bar.most_gb and self.extra_gb else ""
        word = "met" if self.is_met else "missed"
        return f"{self.ratio:.3f} × floor ({self.clock}), bar {self.bar.most}{memory}: {word}"


def bar_of(row: Row) -> Bar | None:
    """None for a floor, a peer, and a shape that has no bar."""
    if not row.who.startswith("fastrl") or row.what not in FLOORS:
        return None
    numbers = [int(word) for word in row.shape.split() if word.isdigit()]
    num_rows, vocab = numbers[0], numbers[-1]
    if row.what == "loss + dX + dW":
        if row.who == HALF_IDLE:
            return Bar(0.53)
        if num_rows == 2048:
            return Bar(1.12)
        return Bar(1.06, most_gb=2.6 if numbers == [8192, 4096, 151936] else None)
    if num_rows == 2048:
        return Bar(1.3, is_wall=True)
    return Bar({"log-prob + entropy": 1.08, "loss + gradient": 1.15}[row.what] if vocab == 151936 else 1.2)


def floor_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The floor of the same shape; for half idle rows, all of them busy. None where it was not measured."""
    what, who = (row.what, "fastrl") if row.who == HALF_IDLE else (FLOORS.get(row.what), None)
    found = (r for r in rows if r.shape == row.shape and r.what == what and who in (None, r.who))
    return next((r for r in found if r.wall_ms is not None), None)


def times_floor(row: Row, rows: Sequence[Row], is_wall: bool = False) -> tuple[float, str] | None:
    """(ratio, clock): of the device's times unless the wall's are asked for, or all there are. None: not measured."""
    floor = floor_of(row, rows)
    if floor is None or row.wall_ms is None:
        return None
    if is_wall or row.time_ms is None or floor.time_ms is None:
        return row.wall_ms / floor.wall_ms, "wall"
    return row.time_ms / floor.time_ms, "device"


def verdict_of(row: Row, rows: Sequence[Row]) -> Verdict | None:
    """None where there is no bar, or nothing was measured."""
    bar = bar_of(row)
    found = times_floor(row, rows, bar.is_wall) if bar else None
    return Verdict(bar, *found, None if row.peak_bytes is None else row.peak_bytes / 1e9) if found else None
