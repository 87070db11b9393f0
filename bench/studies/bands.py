"""Bands over problems and seeds, and what one may say with them.

Runs of a cell share their problems, so seeds and problems are crossed: each resample draws problems once for all runs,
and seeds, both with replacement (a two-way percentile bootstrap). With one seed only problems vary, and with two or
three the seeds' share is an underestimate: it is a lower bound on how far another seed would move the number.

Shapes: S seeds, P problems, K values of k, T evaluations along a run, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from fastrl.statistics import Interval, pass_at_k

NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Resamples:
    """Weights of problems (R,P) and of seeds (R,S), each row summing to 1; the first row is the sample itself."""

    problems_RP: np.ndarray
    seeds_RS: np.ndarray

    @classmethod
    def draw(cls, num_seeds: int, num_problems: int, *, num: int = NUM_RESAMPLES, seed: int = 0) -> "Resamples":
        rng = np.random.default_rng(seed)
        return cls(*(_weights(rng, num, count) for count in (num_problems, num_seeds)))

    def means(self, values: np.ndarray) -> np.ndarray:
        """(S,P,…) values → (R,…) means over seeds and problems."""
        by_seed = np.tensordot(self.problems_RP, values, axes=(1, 1))  # (R,S,…)
        return np.einsum("rs,rs...->r...", self.seeds_RS, by_seed)


def _weights(rng: np.random.Generator, num: int, count: int) -> np.ndarray:
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=num) / count
    drawn[0] = 1 / count
    return drawn


def interval(means_R: np.ndarray, level: float = 0.95) -> Interval:
    """The point estimate (first row) with its percentile interval."""
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means_R[0]), float(low), float(high))


def pass_values(num_correct_SP: np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """(S,P) or (S,T,P) counts → pass@k of the same shape."""
    counts = np.asarray(num_correct_SP)
    return pass_at_k(counts.ravel(), num_samples, k).reshape(counts.shape)


def mean_band(values_SP: np.ndarray) -> Interval:
    """The mean of values by seed and problem with its band over both."""
    return interval(Resamples.draw(*values_SP.shape).means(values_SP))


def band(num_correct_SP: np.ndarray, num_samples: int, k: int) -> Interval:
    """pass@k of a cell with its band over problems and seeds."""
    return mean_band(pass_values(num_correct_SP, num_samples, k))


def crossing(x_RT: np.ndarray, y_RT: np.ndarray, level: float) -> np.ndarray:
    """(R,) y where x first reaches the level, linear in between; where it never does, y at x's highest point."""
    result_R = y_RT[np.arange(len(x_RT)), x_RT.argmax(1)].copy()
    has_reached_RT = x_RT >= level
    for r in np.flatnonzero(has_reached_RT.any(1)):
        t = has_reached_RT[r].argmax()
        if t == 0:
            result_R[r] = y_RT[r, 0]
            continue
        share = (level - x_RT[r, t - 1]) / (x_RT[r, t] - x_RT[r, t - 1])
        result_R[r] = y_RT[r, t - 1] + share * (y_RT[r, t] - y_RT[r, t - 1])
    return result_R


def equal_level(x_T: np.ndarray, other_T: np.ndarray, progress: float) -> float:
    """`progress` of the way from where both start to the lower of the two highest points."""
    start, end = x_T[0], min(x_T.max(), other_T.max())
    return float(start + progress * (end - start))


def difference_at_equal_pass_at_1(
    a_STP: np.ndarray, b_STP: np.ndarray, num_samples: int, k: int, progress: float
) -> tuple[float, Interval]:
    """(level, pass@k of a − b where both first reach that pass@1), from counts along the runs, the base first.

    `progress` is how far from the base's pass@1 to what both reach: see `equal_level`.
    """
    resamples = Resamples.draw(a_STP.shape[0], a_STP.shape[2])
    paths = []
    for counts_STP in (a_STP, b_STP):
        values = [pass_values(counts_STP, num_samples, j).transpose(0, 2, 1) for j in (1, k)]  # (S,P,T)
        paths.append([resamples.means(v) for v in values])
    (x_a, y_a), (x_b, y_b) = paths
    level = equal_level(x_a[0], x_b[0], progress)
    return level, interval(crossing(x_a, y_a, level) - crossing(x_b, y_b, level))


def verdict(value: Interval) -> str:
    """higher, lower, or undecided: the band holds 0."""
    return "higher" if value.low > 0 else "lower" if value.high < 0 else "undecided"
