"""Whether a reward moves with a feature among completions of one problem that are equally correct.

    r = Σ (f − f̄_s)(r − r̄_s) / √(Σ (f − f̄_s)² Σ (r − r̄_s)²)        over strata s: a problem, and right or wrong in it

The band resamples problems. After the conditional form of causal rewards (arXiv:2501.09620), which bins a spurious
variable in reward-model training and compares the bins by MMD within chosen and rejected answers; here nothing is
trained, and a correlation sees linear dependence alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fastrl.statistics import bootstrap_of

MIN_GROUPS = 10  # problems with contrast; a bootstrap over fewer is too sure of itself
FEATURES: dict[str, Callable[[str], float]] = {
    "length": len,
    "lines": lambda text: text.count("\n"),
    "markup": lambda text: sum(map(text.count, "*#`$")),
}


def association(
    feature_n: np.ndarray, reward_n: np.ndarray, groups_n: Sequence[int], is_correct_n: np.ndarray | None, level: float
) -> dict[str, float | int | bool | dict | None]:
    """`r` with its interval, the number of problems with contrast, and whether the interval excludes 0.

    is_correct_n None: strata are problems alone. `r` is None where fewer than MIN_GROUPS problems have contrast.
    """
    strata_n2 = np.stack([groups_n, np.zeros(len(groups_n)) if is_correct_n is None else is_correct_n], axis=1)
    _, strata_n = np.unique(strata_n2, axis=0, return_inverse=True)
    f, r = (_centred(np.asarray(v, dtype=np.float64), strata_n.ravel()) for v in (feature_n, reward_n))
    _, group_n = np.unique(groups_n, return_inverse=True)
    sums_PK = np.stack([np.bincount(group_n, v) for v in (f * r, f * f, r * r)], axis=1)
    has_contrast_P = (sums_PK[:, 1] > 0) & (sums_PK[:, 2] > 0)
    result = {"num_groups": int(has_contrast_P.sum()), "r": None, "moves": False}
    if has_contrast_P.sum() < MIN_GROUPS:
        return result
    interval = bootstrap_of(sums_PK, _correlation, level=level)
    return result | {"r": vars(interval), "moves": interval.excludes_zero}


def _centred(values_n: np.ndarray, strata_n: np.ndarray) -> np.ndarray:
    """Less the mean of the stratum; exactly 0 where all of it are equal."""
    means_S = np.bincount(strata_n, values_n) / np.bincount(strata_n)
    low_S, high_S = np.full(len(means_S), np.inf), np.full(len(means_S), -np.inf)
    np.minimum.at(low_S, strata_n, values_n)
    np.maximum.at(high_S, strata_n, values_n)
    return np.where((low_S == high_S)[strata_n], 0.0, values_n - means_S[strata_n])


def _correlation(sums_RK: np.ndarray) -> np.ndarray:
    product = sums_RK[:, 1] * sums_RK[:, 2]
    return np.divide(sums_RK[:, 0], np.sqrt(product), out=np.full(len(sums_RK), np.nan), where=product > 0)
