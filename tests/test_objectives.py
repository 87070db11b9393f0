"""Objectives against numbers worked out by hand."""

import numpy as np
import pytest

from fastrl.learning.objectives import OBJECTIVES, has_contrast
from fastrl.learning.overlong import Overlong

NAN = float("nan")


def advantages(
    name: str, rewards: list[list[float]], dtype: type = np.float64, threshold: float = 1.0, **settings: float
) -> list[list[float]]:
    rewards_PG = np.array(rewards, dtype=dtype)
    return OBJECTIVES[name](**settings)(rewards_PG, rewards_PG >= threshold).tolist()


def test_psr_reinforces_correct_and_drops_wrong():
    assert advantages("psr", [[1, 0, 1], [0, 0, 0]]) == [[1, 0, 1], [0, 0, 0]]


def test_nsr_penalises_wrong_and_trains_on_all_wrong_groups():
    assert advantages("nsr", [[1, 0, 1], [0, 0, 0], [1, 1, 1]]) == [[0, -1, 0], [-1, -1, -1], [0, 0, 0]]


def test_w_reinforce_weighs_correct_by_lambda():
    (row,) = advantages("w-reinforce", [[1, 0]], positive_weight=0.1)
    assert row == pytest.approx([0.1, -1.0])


def test_reinforce_is_plus_minus_one():
    assert advantages("reinforce", [[1, 0, 0]]) == [[1, -1, -1]]


def test_sign_objectives_cut_at_the_threshold():
    assert advantages("reinforce", [[0.5, 0.49, 1.0]], threshold=0.5) == [[1, -1, 1]]
    assert advantages("nsr", [[0.99, 1.0]]) == [[-1, 0]]


def test_rloo_subtracts_the_mean_of_the_others():
    # rewards 1 0 0 0: 1 − 0 = 1 ; 0 − 1/3
    (row,) = advantages("rloo", [[1, 0, 0, 0]])
    assert row == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_grpo_divides_by_the_unbiased_std():
    # mean 1/4; squared deviations 9/16 + 3/16 = 12/16; /3 = 1/4; std 1/2
    (row,) = advantages("grpo", [[1, 0, 0, 0]])
    assert row == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert advantages("grpo", [[1, 1, 1]]) == [[0, 0, 0]]


def test_dr_grpo_only_centres():
    (row,) = advantages("dr-grpo", [[2.0, 0.0, 1.0]])
    assert row == pytest.approx([1, -1, 0])


def test_asymre_lowers_the_baseline_and_so_reinforces_equal_groups():
    # mean 1/4, baseline 1/4 − 0.1 = 0.15; a group without contrast is worth −δ, all wrong or all right
    rows = advantages("asymre", [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert rows == [pytest.approx([0.85, -0.15, -0.15, -0.15]), [0.1] * 4, [0.1] * 4]
    assert advantages("asymre", [[1, 0], [0, 0]], delta=0.25) == [[0.25, -0.75], [-0.25, -0.25]]
    assert advantages("asymre", [[0.1 + 0.2, 0.3]], delta=-0.1) == [[0.1, 0.1]]  # rounding is no contrast
    assert advantages("asymre", [[1, NAN], [NAN, NAN]]) == [[0.1, 0], [0, 0]]
    assert advantages("asymre", [[1, 0, 0]], delta=0.0) == advantages("dr-grpo", [[1, 0, 0]])


def test_pmpo_means_over_right_and_over_wrong_ones_apart():
    # 8 rollouts, 2 right, 6 wrong: +0.25·8/2 = 1 and −0.75·8/6 = −1
    assert advantages("pmpo", [[1, 0, 0, 0], [1, 0, 0, 0]], alpha=0.25) == [[1, -1, -1, -1]] * 2
    assert advantages("pmpo", [[1, 0], [0, 0]], alpha=0.0) == [[0, pytest.approx(-4 / 3)], [pytest.approx(-4 / 3)] * 2]
    assert advantages("pmpo", [[0, 0], [0, NAN]], alpha=0.5) == [[-0.5, -0.5], [-0.5, 0]]  # nothing is right
    assert advantages("pmpo", [[1, 1]], alpha=0.5) == [[0.5, 0.5]]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_missing_reward_gets_no_advantage_and_enters_no_baseline(name):
    with_hole = advantages(name, [[1, NAN, 0, 0]])[0]
    without = advantages(name, [[1, 0, 0]])[0]
    assert with_hole == pytest.approx([without[0], 0.0, *without[1:]])


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr-grpo"])
def test_a_lone_reward_has_no_baseline_to_beat(name):
    assert advantages(name, [[1, NAN], [NAN, NAN]]) == [[0, 0], [0, 0]]


EQUAL = [0.1, 1 / 3, -0.7, 1e-12, 3.3e7, 0.1 + 0.2]


@pytest.mark.parametrize("size", [2, 3, 7, 8, 16, 1000])
@pytest.mark.parametrize("name", ["rloo", "grpo", "dr-grpo"])
def test_equal_rewards_carry_no_signal_whatever_the_number(name, size):
    for reward in EQUAL:
        assert advantages(name, [[reward] * size]) == [[0.0] * size]
        assert advantages(name, [[reward] * size + [NAN]]) == [[0.0] * (size + 1)]


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr-grpo"])
def test_rewards_that_differ_by_rounding_alone_are_equal(name):
    assert advantages(name, [[0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]]) == [[0.0] * 4]
    assert all(a != 0 for a in advantages(name, [[0.3, 0.300001]])[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["rloo", "grpo", "dr-grpo"])
def test_a_reward_that_is_the_mean_has_advantage_zero(name, dtype):
    low, middle, high = advantages(name, [[0.1, 0.2, 0.3]], dtype)[0]
    assert low < 0 < high and middle == 0.0


def test_contrast_is_asked_of_the_rewards_that_there_are():
    rewards = np.array([[1.0, NAN], [NAN, NAN], [1.0, 0.0], [0.1, 0.1]])
    assert has_contrast(rewards).tolist() == [False, False, True, False]


def test_overlong_penalty_is_linear_over_the_buffer():
    # limit 100, buffer 20: nothing up to 80 tokens, half at 90, all at 100
    lengths = np.array([10, 80, 90, 100])
    assert Overlong(buffer=20, penalty=2.0)(lengths, 100).tolist() == pytest.approx([0.0, 0.0, -1.0, -2.0])
    assert Overlong(buffer=0, penalty=2.0)(lengths, 100).tolist() == [0.0] * 4
