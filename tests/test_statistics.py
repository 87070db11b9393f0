"""pass@k, maj@k, bootstrap intervals and comparisons of evaluations, against numbers worked out by hand."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from fastrl import statistics
from fastrl.statistics import (
    Interval,
    bootstrap,
    bootstrap_of,
    distinct_answers,
    ks_up_to,
    maj_at_k,
    maj_curve,
    majority_share,
    paired_pass_difference,
    pass_at_k,
    pass_curve,
    pass_slope,
    solved_and_lost,
)


def evaluation(num_samples: int, **num_correct: int) -> dict:
    problems = [{"id": key, "num_correct": count} for key, count in num_correct.items()]
    return {"num_samples": num_samples, "problems": problems}


@pytest.mark.parametrize("num_samples", [1, 2, 7, 100, 255, 256])
def test_pass_at_k_equals_exact_fractions(num_samples):
    correct_P = np.arange(num_samples + 1)
    for k in {1, 2, 3, num_samples // 2, num_samples - 1, num_samples} & set(range(1, num_samples + 1)):
        exact = [1 - Fraction(comb(num_samples - c, k), comb(num_samples, k)) for c in range(num_samples + 1)]
        values_P = pass_at_k(correct_P, num_samples, k)
        errors = [abs(Fraction(ours) - theirs) for ours, theirs in zip(values_P, exact, strict=True)]
        assert max(errors) < 1e-12


def test_pass_at_k_by_hand_with_different_sample_counts():
    # 1 of 4: 1 - C(3,2)/C(4,2) = 1 - 3/6; 2 of 3: 1 - C(1,2)/C(3,2) = 1; 1 of 8: 1 - C(7,2)/C(8,2) = 1 - 21/28
    np.testing.assert_allclose(pass_at_k([1, 2, 1], [4, 3, 8], 2), [0.5, 1.0, 0.25], rtol=1e-15)
    assert pass_at_k([], 4, 2).shape == (0,)


@pytest.mark.parametrize(
    ("num_correct", "num_samples", "k", "message"),
    [
        ([1, 5], 4, 1, "problem 1 has num_correct 5, more than its 4 samples"),
        ([1], 4, 5, "pass@5 needs a k between 1 and the number of samples, 4"),
        ([1], 4, 0, "pass@0"),
        ([1, 1], [4, 2], 3, "pass@3.* 2"),
        ([-1], 4, 1, "num_correct must hold counts"),
        ([0.5], 4, 1, "num_correct must hold counts"),
    ],
)
def test_pass_at_k_refuses(num_correct, num_samples, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(num_correct, num_samples, k)


def test_ks_end_with_the_number_of_samples():
    assert ks_up_to(1) == [1]
    assert ks_up_to(8) == [1, 2, 4, 8]
    assert ks_up_to(12) == [1, 2, 4, 8, 12]
    with pytest.raises(ValueError, match="at least 1 sample per problem, got 0"):
        ks_up_to(0)


def test_bootstrap_of_two_problems():
    # Resampled means of {0, 1} are 0, ½, 1 with probabilities ¼, ½, ¼.
    assert bootstrap([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert bootstrap([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5)
    assert bootstrap([0.0, 1.0], level=0.6) == Interval(0.5, 0.0, 1.0)


def test_bootstrap_of_a_ratio_of_means():
    """Two problems with (1, 2) and (3, 2): 4/4 together; a resample holds one twice, or both: ½, 1 or 3/2."""
    found = bootstrap_of([[1.0, 2.0], [3.0, 2.0]], lambda means: means[:, 0] / means[:, 1])
    assert found == Interval(1.0, 0.5, 1.5)
    with np.errstate(invalid="ignore"):  # a resample of the second problem alone is 0/0, and left out
        found = bootstrap_of([[1.0, 2.0], [0.0, 0.0]], lambda means: means[:, 0] / means[:, 1])
    assert found == Interval(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="undefined for the problems themselves"):
        bootstrap_of([[1.0]], lambda means: means[:, 0] * np.nan)
    with pytest.raises(ValueError, match="over 0 problems"):
        bootstrap_of(np.zeros((0, 2)), lambda means: means[:, 0])


def test_bootstrap_width_is_that_of_the_normal_approximation():
    values_P = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = bootstrap(values_P)
    half_width = 1.96 * values_P.std() / 20
    assert interval.mean == pytest.approx(values_P.mean())
    assert interval.high - interval.mean == pytest.approx(half_width, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(half_width, rel=0.05)


def test_bootstrap_columns_share_resamples_and_blocks_change_nothing(monkeypatch):
    values_PK = np.random.default_rng(2).integers(0, 9, size=(13, 2)).astype(float)  # whole numbers: sums are exact
    whole = bootstrap(values_PK)
    assert whole == [bootstrap(values_PK[:, 0]), bootstrap(values_PK[:, 1])]
    assert whole != bootstrap(values_PK, seed=1)
    monkeypatch.setattr(statistics, "RESAMPLE_BLOCK", 13 * 77)
    assert bootstrap(values_PK) == whole


def test_bootstrap_of_one_problem_and_of_none():
    assert bootstrap([0.3]) == Interval(0.3, 0.3, 0.3)
    with pytest.raises(ValueError, match="0 problems"):
        bootstrap([])
    with pytest.raises(ValueError, match="cannot bootstrap nan"):
        bootstrap([0.1, float("nan")])


def test_interval_excludes_zero():
    assert Interval(0.2, 0.1, 0.3).excludes_zero
    assert Interval(-0.2, -0.3, -0.1).excludes_zero
    assert not Interval(0.1, 0.0, 0.3).excludes_zero


def test_pass_curve_by_hand():
    # 1 of 3 and 3 of 3: pass@1 = 1/3, 1; pass@2 = 1 - C(2,2)/C(3,2) = 2/3, 1; pass@3 = 1, 1
    curve = pass_curve([1, 3], 3)
    assert list(curve) == [1, 2, 3]
    assert [interval.mean for interval in curve.values()] == pytest.approx([2 / 3, 5 / 6, 1.0])
    assert curve[3] == Interval(1.0, 1.0, 1.0)
    assert (curve[1].low, curve[1].high) == pytest.approx((1 / 3, 1.0))


def test_majority_vote_of_all_samples():
    answers = [["7", "7", "8"], ["7", "8", "9"], ["8", None, None], [None, None, None], ["7", "7", "8"]]
    correct = [[a == "7" for a in row] for row in answers[:3]] + [[False] * 3, [True, False, False]]
    # a majority; three tied, one right; the only answer is wrong; no answer; 7 leads and was judged right half the time
    np.testing.assert_allclose(maj_at_k(answers, correct, 3), [1, 1 / 3, 0, 0, 0.5], rtol=1e-15)


def test_majority_vote_over_every_subset():
    # of {a, a, b}: aa is won by a, ab twice is a tie; of {a, None, None}: a wins its two subsets, None the third
    answers = [["a", "a", "b"], ["a", None, None]]
    correct = [[True, True, False], [True, False, False]]
    np.testing.assert_allclose(maj_at_k(answers, correct, 2), [2 / 3, 2 / 3], rtol=1e-15)
    np.testing.assert_allclose(maj_at_k(answers, correct, 1), [2 / 3, 1 / 3], rtol=1e-15)


def test_random_subsets_approach_the_exact_vote():
    rng = np.random.default_rng(3)
    answers = [[str(a) for a in rng.choice(4, size=12, p=[0.4, 0.3, 0.2, 0.1])] for _ in range(20)]
    correct = [[a == "0" for a in row] for row in answers]
    exact_P = maj_at_k(answers, correct, 4, num_draws=comb(12, 4))
    drawn_P = maj_at_k(answers, correct, 4, num_draws=comb(12, 4) - 1)
    assert not np.array_equal(exact_P, drawn_P)
    assert np.abs(exact_P - drawn_P).max() < 4 * 0.5 / np.sqrt(494)  # 4 standard errors of a coin at most


def test_majority_of_one_is_pass_at_1_and_problems_do_not_touch():
    rng = np.random.default_rng(4)
    answers = [[str(a) for a in rng.integers(0, 5, size=256)] for _ in range(3)]
    correct = [[a == "0" for a in row] for row in answers]
    np.testing.assert_allclose(maj_at_k(answers, correct, 1), pass_at_k([sum(row) for row in correct], 256, 1))
    alone = maj_at_k(answers[1:2], correct[1:2], 16)
    assert maj_at_k(answers, correct, 16)[1] == alone[0]
    assert maj_curve(answers, correct)[16].mean == pytest.approx(maj_at_k(answers, correct, 16).mean())


def test_majority_vote_refuses():
    with pytest.raises(ValueError, match="same number of samples"):
        maj_at_k([["1", "2"]], [[True]], 1)
    with pytest.raises(ValueError, match="maj@3 needs a k between 1 and the number of samples, 2"):
        maj_at_k([["1", "2"]], [[True, False]], 3)


def test_distinct_answers_leave_none_out():
    assert distinct_answers([["1", "2", "1"], [None, "1"], [None], []]).tolist() == [2, 1, 0, 0]


def test_paired_pass_difference_matches_problems_by_id():
    # pass@1: x 2/4 - 1/4, y 4/4 - 3/4, so 1/4 for both and for their mean; pass@4: both solved by both
    a, b = evaluation(4, x=2, y=4), evaluation(4, y=3, x=1)
    differences = paired_pass_difference(a, b)
    assert list(differences) == [1, 2, 4]
    assert differences[1] == Interval(0.25, 0.25, 0.25)
    assert differences[4] == Interval(0.0, 0.0, 0.0)


def test_a_problem_may_have_its_own_number_of_samples():
    a, b = evaluation(4, x=2), evaluation(4, x=2)
    b["problems"][0]["num_samples"] = 2
    # pass@1: 2/4 - 2/2; pass@2: 1 - C(2,2)/C(4,2) - 1 = -1/6
    means = {k: interval.mean for k, interval in paired_pass_difference(a, b).items()}
    assert means == pytest.approx({1: -1 / 2, 2: -1 / 6})


def test_solved_and_lost():
    base = evaluation(4, a=0, b=1, c=0, d=4)
    new = evaluation(4, d=0, c=0, b=3, a=1)
    assert solved_and_lost(base, new) == (["a"], ["d"])


@pytest.mark.parametrize("compare", [paired_pass_difference, solved_and_lost])
def test_comparisons_refuse_different_problems(compare):
    with pytest.raises(ValueError, match=r"only the first has 4 \(a, b, c, …\); the second 1 \(z\)"):
        compare(evaluation(4, a=1, b=1, c=1, d=1, x=1), evaluation(4, x=1, z=1))
    with pytest.raises(ValueError, match="0 problems"):
        compare(evaluation(4), evaluation(4))
    twice = {"num_samples": 4, "problems": [{"id": "a", "num_correct": 1}] * 2}
    with pytest.raises(ValueError, match="problem 'a' twice"):
        compare(twice, twice)


def test_slope_is_the_least_squares_line_through_the_curve():
    counts = [0, 1, 3, 8]
    curve = pass_curve(counts, 8)
    slope, _ = np.polyfit([0, 1, 2, 3], [curve[k].mean for k in (1, 2, 4, 8)], 1)
    found = pass_slope(counts, 8)
    assert found.mean == pytest.approx(slope, abs=1e-12) and found.low < found.mean < found.high
    assert pass_slope([0, 8], 8) == Interval(0, 0, 0)
    with pytest.raises(ValueError, match="at least 2 samples per problem, got 1"):
        pass_slope([1], 1)


def test_majority_share_by_hand():
    answers = [["a", "a", "b", None], [None, None, None, None], ["a", "b", "c", "d"], [None, None, None, "x"]]
    assert majority_share(answers).tolist() == [0.5, 0, 0.25, 0.25]
