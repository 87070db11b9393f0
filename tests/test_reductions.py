"""Token weights against numbers worked out by hand: lengths 2, 6, 4, of which the second is dropped."""

from dataclasses import replace

import numpy as np
import pytest

from fastrl.learning.reductions import REDUCTIONS, UpdateShape

SHAPE = UpdateShape(
    num_tokens_B=np.array([2, 6, 4]),
    has_gradient_B=np.array([True, False, True]),
    micro_batch_B=np.array([1, -1, 0]),
    max_new_tokens=10,
    nominal_size=4,
)

EXPECTED = {
    "token-mean-kept": [1 / 6, None, 1 / 6],
    "token-mean-all": [1 / 12, None, 1 / 12],
    "sequence-mean": [1 / 6, None, 1 / 12],  # 1 / (3 sequences · T_i)
    "constant": [1 / 30, None, 1 / 30],
    "micro-batch-mean": [1 / 4 / 2, None, 1 / 4 / 4],  # one of four sequences, over the tokens of its micro-batch
}


def test_every_reduction_is_tested():
    assert set(REDUCTIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_weights(name):
    weights = REDUCTIONS[name](SHAPE).tolist()
    for weight, expected in zip(weights, EXPECTED[name], strict=True):
        if expected is not None:
            assert weight == pytest.approx(expected)


def test_micro_batch_mean_joins_the_tokens_of_one_micro_batch():
    shape = UpdateShape(SHAPE.num_tokens_B, SHAPE.has_gradient_B, np.array([0, -1, 0]), 10, 4)
    weights = REDUCTIONS["micro-batch-mean"](shape).tolist()
    assert [weights[0], weights[2]] == pytest.approx([2 / 4 / 6, 2 / 4 / 6])


def test_micro_batch_mean_counts_what_the_term_acts_on():
    """The second rollout is computed for a regulariser's sake: the policy term's weights are as if it were not."""
    computed = replace(SHAPE, micro_batch_B=np.array([0, 0, 0]))
    policy = REDUCTIONS["micro-batch-mean"](computed).tolist()
    assert policy == pytest.approx([2 / 4 / 6, 0.0, 2 / 4 / 6])
    everything = replace(computed, has_gradient_B=np.ones(3, dtype=bool))
    assert REDUCTIONS["micro-batch-mean"](everything).tolist() == pytest.approx([3 / 4 / 12] * 3)


def test_a_term_that_acts_on_nothing_has_finite_weights():
    nothing = replace(SHAPE, has_gradient_B=np.zeros(3, dtype=bool))
    assert all(np.isfinite(REDUCTIONS[name](nothing)).all() for name in REDUCTIONS)


def test_masked_rollouts_are_no_sequences():
    shape = UpdateShape(np.array([2, 0]), np.array([True, False]), np.array([0, -1]), 10, 2)
    assert REDUCTIONS["constant"](shape)[0].item() == pytest.approx(1 / 10)
    assert REDUCTIONS["sequence-mean"](shape)[0].item() == pytest.approx(1 / 2)
