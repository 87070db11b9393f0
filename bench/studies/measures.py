"""What a claim is measured by: differences between cells with their bands, None where a run is missing.

Cells go by their full names (`tier1.nsr`), a quantity is what one evaluation says: pass@k problem by problem, or one
number such as entropy. Differences are paired by seed, and by problem where there are some. One number a run has a band
over seeds alone: it needs two of them, and with two or three it is their range.
"""

from collections.abc import Callable, Sequence

import numpy as np
import results
from bands import crossing, difference_at_equal_pass_at_1, equal_level, mean_band, pass_values
from results import CellResult

from fastrl.statistics import Interval

Measure = Callable[[], Interval | None]
Pair = tuple[str, str]  # names of two cells, of which the second is subtracted
Quantity = Callable[[dict], np.ndarray]  # of one row of results: (P,), or (1,) where it is one number


def pass_at(k: int) -> Quantity:
    """pass@k by problem."""
    return lambda row: pass_values(np.array(row["num_correct"]), row["num_samples"], k)


def entropy(row: dict) -> np.ndarray:
    """Mean token entropy, nats."""
    return np.array([row["mean_token_entropy"]])


def against_base(name: str, quantity: Quantity) -> Measure:
    """A cell at its end less the model it started from."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        return cell and _band(_values(cell, quantity) - quantity(cell.start))

    return measure


def between(a: str, b: str, quantity: Quantity) -> Measure:
    """a − b at equal steps."""
    return mean_between([(a, b)], quantity)


def mean_between(pairs: Sequence[Pair], quantity: Quantity) -> Measure:
    """a − b at equal steps, the mean over pairs."""

    def measure() -> Interval | None:
        values = _mean_difference(pairs, quantity)
        return None if values is None else _band(values)

    return measure


def contrast(first: Sequence[Pair], second: Sequence[Pair], quantity: Quantity) -> Measure:
    """`mean_between` of the pairs under one setting less that of those under another: tier 2's interaction."""

    def measure() -> Interval | None:
        if not _paired(*(name for pair in (*first, *second) for name in pair)):
            return None
        return _band(_mean_difference(first, quantity) - _mean_difference(second, quantity))

    return measure


def between_at_equal_pass_at_1(a: str, b: str, k: int, progress: float) -> Measure:
    """pass@k of a − b where both first reach the same pass@1."""

    def measure() -> Interval | None:
        if not (cells := _paired(a, b)) or "followed" not in results.base():
            return None
        first, second = cells
        num_samples = first.rows[0]["followed"]["num_samples"]
        return difference_at_equal_pass_at_1(first.path_STP, second.path_STP, num_samples, k, progress)[1]

    return measure


def entropy_at_equal_pass_at_1(a: str, b: str, progress: float) -> Measure:
    """Mean token entropy of a − b where both first reach the same pass@1, over seeds; of the followed problems."""

    def measure() -> Interval | None:
        if not (cells := _paired(a, b)) or "followed" not in results.base():
            return None
        num_samples = cells[0].rows[0]["followed"]["num_samples"]
        x_a, x_b = (pass_values(cell.path_STP, num_samples, 1).mean(2) for cell in cells)
        level = equal_level(x_a.mean(0), x_b.mean(0), progress)
        first, second = (crossing(x, c.entropy_path_ST, level) for x, c in zip((x_a, x_b), cells, strict=True))
        return _band((first - second)[:, None])

    return measure


def late_change(name: str, k: int, start: int) -> Measure:
    """pass@k at the end of a long run less that at step `start`, on the followed problems."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        if cell is None:
            return None
        followed = cell.rows[0]["followed"]
        values_STP = pass_values(cell.path_STP[:, 1:], followed["num_samples"], k)  # without the initial policy
        return _band(values_STP[:, -1] - values_STP[:, followed["steps"].index(start)])

    return measure


def metric_growth(name: str, metric: str) -> Measure:
    """log(mean of a metric over the last steps / over the first), over seeds. collect.py says how many steps."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        windows = [row["windows"] for row in cell.rows if "windows" in row] if cell else []
        return _band(np.array([[np.log(w["last"][metric] / w["first"][metric])] for w in windows]))

    return measure


def _paired(*names: str) -> list[CellResult]:
    """The cells with the seeds that all have; empty where one is missing or they share no seed."""
    cells = [results.cell(name) for name in names]
    return [] if None in cells else results.of_common_seeds(cells)


def _mean_difference(pairs: Sequence[Pair], quantity: Quantity) -> np.ndarray | None:
    """(S,P) or (S,1): the mean of a − b over pairs; None where a cell is missing or they share no seed."""
    cells = _paired(*(name for pair in pairs for name in pair))
    values = [_values(cell, quantity) for cell in cells]
    return np.mean(values[::2], axis=0) - np.mean(values[1::2], axis=0) if values else None


def _values(cell: CellResult, quantity: Quantity) -> np.ndarray:
    """(S,P) or (S,1), by seed."""
    return np.stack([quantity(row["test"]) for row in cell.rows])


def _band(values: np.ndarray) -> Interval | None:
    """Of (S,P) or (S,1) values; None for fewer than two numbers."""
    return mean_band(values) if values.size > 1 else None
