"""What the paper says and what its critics say, each as a measurement with a band and a verdict.

A claim is a number that it makes a prediction about: `higher` or `lower` than 0, or `same`, which no band can prove:
there `undecided` is all that can be said for it, and the width of the band says how much that is worth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import results
from bands import Resamples, difference, difference_at_equal_pass_at_1, interval, pass_values, verdict

from fastrl.statistics import Interval


@dataclass(frozen=True)
class Claim:
    """source, what is said, what it predicts, and the measurement: None where its runs are not there yet."""

    source: str
    text: str
    predicts: str
    measure: Callable[[], Interval | None]

    def row(self) -> list[str]:
        value = self.measure()
        if value is None:
            return [self.source, self.text, self.predicts, "–", "not run"]
        return [self.source, self.text, self.predicts, points(value), judge(self.predicts, verdict(value))]


def points(value: Interval) -> str:
    """A difference in points with its band."""
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]".replace("-", "−")


def judge(predicts: str, found: str) -> str:
    """The verdict on a prediction."""
    if found == "undecided":
        return "undecided"
    if predicts == "same":
        return f"contradicted: {found}"
    return "supported" if predicts == found else f"contradicted: {found}"


def against_base(name: str, k: int, tier: int = 1) -> Callable[[], Interval | None]:
    """pass@k of a cell less that of the model it started from."""

    def measure() -> Interval | None:
        cell = results.cells(tier).get(name)
        if cell is None or k > cell.num_samples:
            return None
        counts_1P = results.base_counts(cell.rows[0]["warmup"])
        base_PK = pass_values(counts_1P, results.base()["test"]["num_samples"], k)
        return _interval(pass_values(cell.counts_SP, cell.num_samples, k) - base_PK)

    return measure


def between(a: str, b: str, k: int, tier: int = 1) -> Callable[[], Interval | None]:
    """pass@k of a − b at equal steps, paired by seed and problem."""

    def measure() -> Interval | None:
        found = results.cells(tier)
        if not {a, b} <= found.keys():
            return None
        first, second = results.of_common_seeds([found[a], found[b]])
        return difference(first.counts_SP, second.counts_SP, first.num_samples, k)

    return measure


def between_at_equal_pass_at_1(a: str, b: str, k: int, progress: float) -> Callable[[], Interval | None]:
    """pass@k of a − b where both first reach the same pass@1."""

    def measure() -> Interval | None:
        found = results.cells(1)
        if not {a, b} <= found.keys() or "followed" not in results.base():
            return None
        first, second = results.of_common_seeds([found[a], found[b]])
        num_samples = first.rows[0]["followed"]["num_samples"]
        return difference_at_equal_pass_at_1(first.path_STP, second.path_STP, num_samples, k, progress)[1]

    return measure


def contrast(first: tuple[str, str], second: tuple[str, str], k: int) -> Callable[[], Interval | None]:
    """(a − b under one setting) − (a − b under another): tier 2's interaction."""

    def measure() -> Interval | None:
        found = results.cells(2)
        if not {*first, *second} <= found.keys():
            return None
        cells = results.of_common_seeds([found[n] for n in (*first, *second)])
        a, b, c, d = (pass_values(cell.counts_SP, cell.num_samples, k) for cell in cells)
        return _interval(a - b - (c - d))

    return measure


def late_change(name: str, k: int, start: int) -> Callable[[], Interval | None]:
    """pass@k at the end of a long run less that at step `start`, on the followed problems."""

    def measure() -> Interval | None:
        cell = results.cells(3).get(name)
        if cell is None:
            return None
        followed = [row["followed"] for row in cell.rows]
        index = followed[0]["steps"].index(start)
        counts_STP = np.array([f["num_correct"] for f in followed])
        values_STP = pass_values(counts_STP, followed[0]["num_samples"], k)
        return _interval(values_STP[:, -1] - values_STP[:, index])

    return measure


def _interval(values_SP: np.ndarray) -> Interval:
    return interval(Resamples.draw(*values_SP.shape).means(values_SP))


PAPER = "paper (2506.01347)"
CLAIMS = [
    Claim(PAPER, "NSR alone improves pass@1 over the base", "higher", against_base("nsr", 1)),
    Claim(PAPER, "NSR keeps the base's pass@256", "same", against_base("nsr", 256)),
    Claim(PAPER, "PSR improves pass@1 over the base", "higher", against_base("psr", 1)),
    Claim(PAPER, "PSR falls below the base at k = 256", "lower", against_base("psr", 256)),
    Claim(PAPER, "NSR is above PSR at k = 256", "higher", between("nsr", "psr", 256)),
    Claim(PAPER, "W-REINFORCE 0.1 is above PSR at k = 256", "higher", between("w-reinforce-0.1", "psr", 256)),
    Claim(PAPER, "W-REINFORCE 0.1 is above NSR at k = 1", "higher", between("w-reinforce-0.1", "nsr", 1)),
    Claim(
        PAPER,
        "λ = 1 loses the tail: below λ = 0.1 at k = 256",
        "lower",
        between("w-reinforce-1", "w-reinforce-0.1", 256),
    ),
    Claim(PAPER, "W-REINFORCE 0.1 is above GRPO at k = 256", "higher", between("w-reinforce-0.1", "grpo", 256)),
    Claim(
        PAPER,
        "NSR declines over hundreds of steps (pass@1, 405 steps against 150)",
        "lower",
        late_change("long.nsr", 1, 150),
    ),
    Claim(PAPER, "W-REINFORCE does not", "same", late_change("long.w-reinforce-0.1", 1, 150)),
    Claim(
        "only slower?",
        "at equal pass@1 (95 % of the way) NSR is still above PSR at k = 64",
        "higher",
        between_at_equal_pass_at_1("nsr", "psr", 64, 0.95),
    ),
    Claim(
        "only slower?",
        "the same half of the way",
        "higher",
        between_at_equal_pass_at_1("nsr", "psr", 64, 0.5),
    ),
    Claim(
        "baseline identity",
        "one update a batch, sequence sum: NSR and PSR agree at k = 64",
        "same",
        between("nsr.u1.clip.sum", "psr.u1.clip.sum", 64, tier=2),
    ),
    Claim(
        "issue #6",
        "NSR − PSR at k = 64 is larger with four clipped updates than with one",
        "higher",
        contrast(("nsr.u4.clip.kept", "psr.u4.clip.kept"), ("nsr.u1.clip.kept", "psr.u1.clip.kept"), 64),
    ),
    Claim(
        "issue #6",
        "and larger with clipping than without (four updates)",
        "higher",
        contrast(("nsr.u4.clip.kept", "psr.u4.clip.kept"), ("nsr.u4.free.kept", "psr.u4.free.kept"), 64),
    ),
    Claim(
        "normalisation",
        "NSR − PSR at k = 64 is larger with the mean over kept tokens than over all",
        "higher",
        contrast(("nsr.u4.clip.kept", "psr.u4.clip.kept"), ("nsr.u4.clip.all", "psr.u4.clip.all"), 64),
    ),
    Claim(
        "issue #19",
        "from a weak base (200 warm-start steps) NSR does not gain at k = 1",
        "same",
        against_base("base200.nsr", 1, 3),
    ),
    Claim("control", "a coin as reward teaches NSR nothing at k = 1", "same", against_base("random.nsr", 1, 3)),
    Claim("control", "a coin as reward teaches PSR nothing at k = 1", "same", against_base("random.psr", 1, 3)),
    Claim("control", "an inverted reward makes NSR worse at k = 1", "lower", against_base("inverted.nsr", 1, 3)),
    Claim("control", "an inverted reward makes PSR worse at k = 1", "lower", against_base("inverted.psr", 1, 3)),
    Claim(
        "one-shot",
        "one training problem is enough for NSR to gain at k = 1",
        "higher",
        against_base("one-problem.nsr", 1, 3),
    ),
    Claim(
        "one-shot",
        "one training problem is enough for PSR to gain at k = 1",
        "higher",
        against_base("one-problem.psr", 1, 3),
    ),
]
