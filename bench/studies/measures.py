"""What a claim is measured by: differences between cells as intervals, None where a run is missing.

Cells go by their full names (`tier1.nsr`). pass@k is a probability, entropy is in nats per token. Differences are
paired by seed, and by problem where problems are kept apart; where they are not (entropy, gradient norms) the band is
over seeds alone, and two of them are the least.
"""

from collections.abc import Callable

import numpy as np
import results
from bands import (
    Resamples,
    crossing,
    difference,
    difference_at_equal_pass_at_1,
    equal_level,
    interval,
    pass_values,
)
from results import CellResult

from fastrl.statistics import Interval

Measure = Callable[[], Interval | None]


def against_base(name: str, k: int) -> Measure:
    """pass@k of a cell less that of the model it started from."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        if cell is None or k > cell.num_samples:
            return None
        counts_1P = results.base_counts(cell.rows[0]["warmup"])
        base_PK = pass_values(counts_1P, results.base()["test"]["num_samples"], k)
        return _interval(pass_values(cell.counts_SP, cell.num_samples, k) - base_PK)

    return measure


def between(a: str, b: str, k: int) -> Measure:
    """pass@k of a − b at equal steps."""

    def measure() -> Interval | None:
        if not (cells := _paired(a, b)):
            return None
        first, second = cells
        return difference(first.counts_SP, second.counts_SP, first.num_samples, k)

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


def contrast(first: tuple[str, str], second: tuple[str, str], k: int) -> Measure:
    """pass@k of (a − b under one setting) − (a − b under another): tier 2's interaction."""

    def measure() -> Interval | None:
        if not (cells := _paired(*first, *second)):
            return None
        a, b, c, d = (pass_values(cell.counts_SP, cell.num_samples, k) for cell in cells)
        return _interval(a - b - (c - d))

    return measure


def late_change(name: str, k: int, start: int) -> Measure:
    """pass@k at the end of a long run less that at step `start`, on the followed problems."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        if cell is None:
            return None
        followed = [row["followed"] for row in cell.rows]
        index = followed[0]["steps"].index(start)
        counts_STP = np.array([f["num_correct"] for f in followed])
        values_STP = pass_values(counts_STP, followed[0]["num_samples"], k)
        return _interval(values_STP[:, -1] - values_STP[:, index])

    return measure


def entropy_against_base(name: str) -> Measure:
    """Mean token entropy at the end less that of the initial policy, over seeds."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        return None if cell is None else _over_seeds(cell.entropy_S - results.base()["test"]["mean_token_entropy"])

    return measure


def entropy_between(a: str, b: str) -> Measure:
    """Mean token entropy of a − b at equal steps, over seeds."""

    def measure() -> Interval | None:
        cells = _paired(a, b)
        return _over_seeds(cells[0].entropy_S - cells[1].entropy_S) if cells else None

    return measure


def entropy_contrast(first: tuple[str, str], second: tuple[str, str]) -> Measure:
    """Mean token entropy of (a − b under one setting) − (a − b under another), over seeds."""

    def measure() -> Interval | None:
        if not (cells := _paired(*first, *second)):
            return None
        a, b, c, d = (cell.entropy_S for cell in cells)
        return _over_seeds(a - b - (c - d))

    return measure


def entropy_at_equal_pass_at_1(a: str, b: str, progress: float) -> Measure:
    """Mean token entropy of a − b where both first reach the same pass@1, over seeds; of the followed problems."""

    def measure() -> Interval | None:
        if not (cells := _paired(a, b)) or "mean_token_entropy" not in results.base().get("followed", {}):
            return None
        num_samples = cells[0].rows[0]["followed"]["num_samples"]
        x_a, x_b = (pass_values(cell.path_STP, num_samples, 1).mean(2) for cell in cells)
        level = equal_level(x_a.mean(0), x_b.mean(0), progress)
        first, second = (crossing(x, c.entropy_path_ST, level) for x, c in zip((x_a, x_b), cells, strict=True))
        return _over_seeds(first - second)

    return measure


def metric_growth(name: str, metric: str) -> Measure:
    """log(mean of a metric over the last steps / over the first), over seeds. collect.py says how many steps."""

    def measure() -> Interval | None:
        cell = results.cell(name)
        if cell is None:
            return None
        windows = [row["windows"] for row in cell.rows if "windows" in row]
        return _over_seeds(np.log([w["last"][metric] / w["first"][metric] for w in windows]))

    return measure


def _paired(*names: str) -> list[CellResult]:
    """The cells with the seeds that all have; empty where one is missing or they share no seed."""
    cells = [results.cell(name) for name in names]
    return [] if None in cells else results.of_common_seeds(cells)


def _interval(values_SP: np.ndarray) -> Interval:
    return interval(Resamples.draw(*values_SP.shape).means(values_SP))


def _over_seeds(values_S: np.ndarray) -> Interval | None:
    """The band of one number a seed: with two or three it is their range."""
    return _interval(np.reshape(values_S, (-1, 1))) if len(values_S) > 1 else None
