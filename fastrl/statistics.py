"""What an evaluation says: pass@k, maj@k, and how sure one can be of them.

    pass@k = mean over problems of 1 - C(n-c, k) / C(n, k)     c of n samples are correct (Chen et al. 2021, eq. 1)
    maj@k  = mean over problems of P(the most frequent answer of k samples is correct)      (Wang et al. 2022)

Intervals are percentile bootstraps over problems (Efron 1979): they say how a number would move with other problems of
the same kind, not with another training seed. Two evaluations of the same problems are compared through the bootstrap
of the differences, problem by problem, which is much tighter than two separate intervals.

Shapes: P problems, K values of k, n samples of one problem. An `evaluation` is the dict that `eval/*.json` holds.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

RESAMPLE_BLOCK = 4_000_000  # resampled values held at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over problems and the ends of its confidence interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside [low, high]."""
        return self.low > 0 or self.high < 0


def pass_at_k(num_correct_P, num_samples, k: int) -> np.ndarray:
    """The unbiased probability that at least one of k samples is correct, per problem.

    num_correct_P is (P,) integers; num_samples an integer or (P,) integers. Returns (P,) float64 with an absolute error
    of order k * 1e-16. Raises ValueError unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples everywhere.
    Formula: C(n-c, k) / C(n, k) = prod over j < k of (n-c-j) / (n-j); no factorial is formed.
    """
    correct_P = _as_counts("num_correct", num_correct_P)
    samples_P = np.broadcast_to(_as_counts("num_samples", num_samples), correct_P.shape)
    if np.any(correct_P > samples_P):
        i = int(np.argmax(correct_P > samples_P))
        raise ValueError(f"problem {i} has num_correct {correct_P[i]}, more than its {samples_P[i]} samples")
    _check_k("pass", k, samples_P)
    fail_P = np.ones(correct_P.shape)
    for j in range(k):
        fail_P *= np.maximum(samples_P - correct_P - j, 0) / (samples_P - j)
    return 1.0 - fail_P


def _check_k(metric: str, k: int, samples_P) -> None:
    fewest = min(samples_P, default=k)
    if k < 1 or k > fewest:
        raise ValueError(f"{metric}@{k} needs a k between 1 and the number of samples, {fewest}")


def _as_counts(name: str, values) -> np.ndarray:
    array = np.asarray(values)
    if array.size and (array.dtype.kind not in "iub" or array.min() < 0):
        raise ValueError(f"{name} must hold counts (integers >= 0), got {array.ravel()[:4].tolist()} of {array.dtype}")
    return array.astype(np.int64)


def ks_up_to(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to num_samples, which always comes last. Raises ValueError when num_samples < 1."""
    if num_samples < 1:
        raise ValueError(f"pass@k needs at least 1 sample per problem, got {num_samples}")
    powers = [2**i for i in range(num_samples.bit_length())]
    return powers if powers[-1] == num_samples else [*powers, num_samples]


def bootstrap(values, *, num_resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval | list[Interval]:
    """Mean over problems with its percentile-bootstrap interval; deterministic in `seed`.

    values (P,) float gives one Interval; (P, K) gives K of them, all from the same resamples of problems. One problem
    gives an interval of no width. Raises ValueError for no problems or a value that is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("cannot bootstrap over 0 problems; the evaluation is empty")
    if not np.isfinite(values).all():
        raise ValueError(f"cannot bootstrap {values[~np.isfinite(values)][0]}; every problem needs a finite value")
    values_PK = values.reshape(len(values), -1)
    means_RK = _resampled_means(values_PK, num_resamples, np.random.default_rng(seed))
    low_K, high_K = np.quantile(means_RK, [(1 - level) / 2, (1 + level) / 2], axis=0)
    columns = zip(values_PK.mean(axis=0), low_K, high_K, strict=True)
    intervals = [Interval(float(mean), float(low), float(high)) for mean, low, high in columns]
    return intervals if values.ndim > 1 else intervals[0]


def bootstrap_of(
    values_PK, statistic: Callable[[np.ndarray], np.ndarray], *, num_resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """A function of K means over problems (a ratio, a correlation) with its percentile-bootstrap interval.

    statistic maps (R, K) means to (R,) values; resamples in which it is NaN are left out. Raises ValueError for no
    problems, and where it is NaN for the problems themselves.
    """
    values_PK = np.asarray(values_PK, dtype=np.float64)
    if not values_PK.size:
        raise ValueError("cannot bootstrap over 0 problems")
    value = float(statistic(values_PK.mean(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        raise ValueError("cannot bootstrap a statistic that is undefined for the problems themselves")
    found_R = statistic(_resampled_means(values_PK, num_resamples, np.random.default_rng(0)))
    low, high = np.nanquantile(found_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resampled_means(values_PK: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    num_problems = len(values_PK)
    block = max(1, RESAMPLE_BLOCK // num_problems)
    means = []
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn_RP = rng.integers(num_problems, size=(size, num_problems))
        offsets_R1 = num_problems * np.arange(size)[:, None]
        weights = np.bincount((drawn_RP + offsets_R1).ravel(), minlength=size * num_problems)
        means.append(weights.reshape(size, num_problems) @ values_PK / num_problems)
    return np.concatenate(means)


def _curve(ks: list[int], values_at: Callable[[int], np.ndarray]) -> dict[int, Interval]:
    """The mean over problems and its interval for every k; values_at(k) is (P,)."""
    return dict(zip(ks, bootstrap(np.stack([values_at(k) for k in ks], axis=1)), strict=True))


def mean_reward(rewards_PG: np.ndarray) -> Interval | None:
    """The mean over problems of their samples' mean reward; completions without a verdict (NaN) are left out.

    None where there is no verdict at all.
    """
    num_judged_P = (~np.isnan(rewards_PG)).sum(axis=1)
    sums_P = np.nansum(rewards_PG, axis=1)
    return bootstrap((sums_P / np.maximum(num_judged_P, 1))[num_judged_P > 0]) if num_judged_P.any() else None


def pass_curve(num_correct_P, num_samples) -> dict[int, Interval]:
    """pass@k with 95 % intervals for k = 1, 2, 4, ... and the smallest num_samples. Arguments as in `pass_at_k`."""
    ks = ks_up_to(int(np.min(num_samples)))
    return _curve(ks, lambda k: pass_at_k(num_correct_P, num_samples, k))


def maj_curve(answers: list[list[str | None]], is_correct: list[list[bool]]) -> dict[int, Interval]:
    """maj@k with 95 % intervals for k = 1, 2, 4, ... and the smallest number of samples. Arguments as in `maj_at_k`."""
    ks = ks_up_to(min((len(row) for row in answers), default=0))
    return _curve(ks, lambda k: maj_at_k(answers, is_correct, k))


def maj_at_k(
    answers: list[list[str | None]], is_correct: list[list[bool]], k: int, *, num_draws: int = 64, seed: int = 0
) -> np.ndarray:
    """Expected accuracy of a majority vote over k samples drawn without replacement (Wang et al. 2022).

    `answers[p][i]` is the normalised answer of sample i to problem p, None where there is none; `is_correct[p][i]` says
    if it is right. None wins only when all k answers are None; a tie goes to each leading answer with equal
    probability; an answer judged both ways counts by its share of correct verdicts. Returns (P,) float64: exact where
    there are at most max(n, num_draws) subsets (k = 1 and k = n), else the mean over num_draws random ones, which
    depend on n, k and `seed` only. Raises ValueError when the lists differ in length or k is not in 1..n.
    """
    if [len(row) for row in answers] != [len(row) for row in is_correct]:
        raise ValueError("answers and is_correct must hold the same number of samples for every problem")
    _check_k("maj", k, [len(row) for row in answers])
    pairs = zip(answers, is_correct, strict=True)
    return np.array([_vote_accuracy(*pair, _subsets(len(pair[0]), k, num_draws, seed)) for pair in pairs])


def _subsets(num_samples: int, k: int, num_draws: int, seed: int) -> np.ndarray:
    """(D, k) sample indices: every subset when there are few, else random ones."""
    if comb(num_samples, k) <= max(num_samples, num_draws):
        return np.array(list(combinations(range(num_samples), k)))
    orders = np.tile(np.arange(num_samples), (num_draws, 1))
    return np.random.default_rng(seed).permuted(orders, axis=1)[:, :k]


def _vote_accuracy(answers: list[str | None], is_correct: list[bool], subsets_Dk: np.ndarray) -> float:
    code_of = {answer: i for i, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
    none = len(code_of)
    codes_n = np.array([code_of.get(answer, none) for answer in answers])
    share_M = np.bincount(codes_n, np.asarray(is_correct, np.float64), none + 1)
    share_M /= np.maximum(np.bincount(codes_n, minlength=none + 1), 1)
    offsets_D1 = (none + 1) * np.arange(len(subsets_Dk))[:, None]
    votes = np.bincount((codes_n[subsets_Dk] + offsets_D1).ravel(), minlength=len(subsets_Dk) * (none + 1))
    votes_DM = votes.reshape(-1, none + 1).astype(np.float64)
    votes_DM[:, none] = 0.5  # below the one vote of any answer, above the zero of all when every sample is None
    leads_DM = votes_DM == votes_DM.max(axis=1, keepdims=True)
    return float(np.mean(leads_DM @ share_M / leads_DM.sum(axis=1)))


def distinct_answers(answers: list[list[str | None]]) -> np.ndarray:
    """The number of different answers per problem, None not counted. Returns (P,) int64."""
    return np.array([len(set(row) - {None}) for row in answers], dtype=np.int64)


def pass_slope(num_correct_P, num_samples: int) -> Interval:
    """Rise of pass@k per doubling of k: least squares of pass@k on log2 k over k = 1, 2, 4, …, with its interval.

    A log-linear summary of a curve that bends; 0 for a model whose samples of a problem are all right or all wrong.
    Raises ValueError for fewer than 2 samples.
    """
    ks = ks_up_to(num_samples)
    if len(ks) < 2:
        raise ValueError(f"a slope needs at least 2 samples per problem, got {num_samples}")
    x_K = np.log2(ks) - np.log2(ks).mean()
    values_PK = np.stack([pass_at_k(num_correct_P, num_samples, k) for k in ks], axis=1)
    return bootstrap(values_PK @ x_K / (x_K @ x_K))


def majority_share(answers: list[list[str | None]]) -> np.ndarray:
    """Share of a problem's samples that give its most frequent answer; None is no answer. Returns (P,) float64."""
    counts = [Counter(a for a in row if a is not None) for row in answers]
    return np.array([max(c.values(), default=0) / len(row) for c, row in zip(counts, answers, strict=True)])


def paired_pass_difference(eval_a: dict, eval_b: dict) -> dict[int, Interval]:
    """pass@k of `eval_a` minus that of `eval_b`, in [-1, 1], paired by problem id, with 95 % intervals.

    k is 1, 2, 4, ... and the smaller number of samples. Raises ValueError when the evaluations hold different problems,
    or an id twice.
    """
    counts_a, counts_b = _counts_of_same_problems(eval_a, eval_b)
    ks = ks_up_to(int(min(counts_a[1].min(), counts_b[1].min())))
    return _curve(ks, lambda k: pass_at_k(*counts_a, k) - pass_at_k(*counts_b, k))


def solved_and_lost(eval_base: dict, eval_new: dict) -> tuple[list, list]:
    """Ids solved in `eval_new` only, and ids solved in `eval_base` only; solved means at least one correct sample.

    Both in the order of `eval_base`. Raises ValueError when the evaluations hold different problems.
    """
    (base_P, _), (new_P, _) = _counts_of_same_problems(eval_base, eval_new)
    ids = [problem["id"] for problem in eval_base["problems"]]
    solved = [ids[i] for i in np.flatnonzero((base_P == 0) & (new_P > 0))]
    lost = [ids[i] for i in np.flatnonzero((base_P > 0) & (new_P == 0))]
    return solved, lost


def _counts_of_same_problems(eval_a: dict, eval_b: dict) -> tuple[np.ndarray, np.ndarray]:
    """Two (2, P) arrays of num_correct and num_samples, both in the order of `eval_a`."""
    by_id_a, by_id_b = _counts_by_id(eval_a), _counts_by_id(eval_b)
    only_a, only_b = by_id_a.keys() - by_id_b.keys(), by_id_b.keys() - by_id_a.keys()
    if only_a or only_b:
        raise ValueError(
            f"evaluations of different problems: only the first has {_few(only_a)}; the second {_few(only_b)}"
        )
    if not by_id_a:
        raise ValueError("the evaluations hold 0 problems; there is nothing to compare")
    return np.array(list(by_id_a.values())).T, np.array([by_id_b[key] for key in by_id_a]).T


def _counts_by_id(evaluation: dict) -> dict:
    counts = {}
    for problem in evaluation["problems"]:
        if re.search(r"(?:\.\w+:|, row )\d+$", str(problem["id"])):
            raise ValueError(
                f"the evaluation knows problem {problem['id']!r} by its place in a file, not by its content: whether "
                "another one holds the same problems cannot be told; evaluate again"
            )
        if problem["id"] in counts:
            raise ValueError(f"the evaluation holds problem {problem['id']!r} twice; ids must be unique")
        counts[problem["id"]] = (problem["num_correct"], problem.get("num_samples", evaluation["num_samples"]))
    return counts


def _few(ids: set) -> str:
    shown = ", ".join(sorted(map(str, ids))[:3])
    return f"{len(ids)} ({shown}{', …' if len(ids) > 3 else ''})" if ids else "none"
