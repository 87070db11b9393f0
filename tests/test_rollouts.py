"""Columns: slices, copies and bytes of a batch hold what the rollouts held."""

import numpy as np
import pytest
from rollout_cases import Rollout, batch_of, rows_of

from fastrl.rollouts import Rollouts, decoded, encoded, spans, text_column

ROWS = [
    Rollout([5, 6, 7], [8, 1], 0.5, group=0, sampler_logprobs=[-0.5, -1.0], loss_mask=[1, 1]),
    Rollout([5, 6, 7], [], group=0, finish_reason="length"),
    Rollout([9], [4, 4, 4, 1], -1.0, group=1, sampler_logprobs=[-2.0, -3.0, -4.0, -5.0], loss_mask=[1, 0, 1, 1]),
    Rollout([5, 6, 7], [2], 1.0, group=2, sampler_logprobs=[-0.25], loss_mask=[1]),
]


def plain(rows: list[Rollout]) -> list[Rollout]:
    return [
        Rollout(r.prompt_ids, r.completion_ids, 0.0, r.group, r.finish_reason, r.sampler_logprobs, r.loss_mask)
        for r in rows
    ]


def test_columns_hold_the_rows_and_parts_of_them_hold_theirs():
    batch = batch_of(ROWS)
    assert len(batch) == 4 and batch.num_tokens == 7
    assert rows_of(batch) == plain(ROWS)
    assert rows_of(batch.take([3, 0, 0])) == plain([ROWS[3], ROWS[0], ROWS[0]])
    assert rows_of(batch.take(np.array([False, True, True, False]))) == plain(ROWS[1:3])
    assert rows_of(Rollouts.concat([batch.take([2]), batch.take([]), batch.take([0, 1])])) == plain(
        [ROWS[2], *ROWS[:2]]
    )
    assert batch.take([2]).credits_N.tolist() == [-1.0, 0.0, -1.0, -1.0]


def test_sums_signs_and_gradients_count_what_the_mask_keeps():
    batch = batch_of(ROWS)
    assert batch.loss_tokens_R.tolist() == [2, 0, 3, 1]
    assert batch.credit_sums_R.tolist() == [1.0, 0.0, -3.0, 1.0]
    assert batch.has_gradient_R.tolist() == [True, False, True, True]
    assert batch.sum_by_rollout(batch.sampler_logprobs_N).tolist() == [-1.5, 0.0, -14.0, -0.25]
    assert batch.by_token(np.arange(4)).tolist() == [0, 0, 2, 2, 2, 2, 3]
    assert batch.prompt_keys_R.tolist() == [0, 0, 1, 0]


def test_the_same_completions_go_behind_other_prompts():
    batch = batch_of(ROWS)
    moved = batch.behind([[1], [2, 2], [], [3, 3, 3, 3]])
    assert [row.prompt_ids for row in rows_of(moved)] == [[1], [2, 2], [], [3, 3, 3, 3]]
    assert [row.completion_ids for row in rows_of(moved)] == [row.completion_ids for row in ROWS]
    assert (
        moved.credits_N is not None and moved.sampler_logprobs_N.tolist() == batch_of(ROWS).sampler_logprobs_N.tolist()
    )


def test_columns_survive_being_sent():
    texts = text_column(["", None, "half \ud800 a pair, α", "x" * 1000])
    batch = Rollouts.of([[1]] * 4, [[2]] * 4, rewards_R=np.array([1.0, np.nan, 0.0, -0.5]), texts_R=texts)
    sent = encoded(dict(batch.columns()))
    assert all(array.dtype != object for array in sent.values())
    back = Rollouts(**decoded(sent))
    for name, column in batch.columns():
        assert getattr(back, name).dtype == column.dtype
        np.testing.assert_array_equal(getattr(back, name), column)


def test_a_completion_token_takes_thirteen_bytes():
    batch = batch_of([Rollout([1] * 10, [2] * 1000, 1.0)])
    columns = {name: column for name, column in batch.columns() if name[-1] in "NT"}
    assert sum(column.nbytes for column in columns.values()) == 13 * 1000 + 4 * 10


def test_batches_of_different_columns_do_not_mix():
    with pytest.raises(AssertionError, match="different columns"):
        Rollouts.concat([batch_of(ROWS), Rollouts.of([[1]], [[2]])])


def test_spans_count_up_from_each_start():
    assert spans(np.array([5, 0, 9]), np.array([3, 0, 2])).tolist() == [5, 6, 7, 9, 10]
