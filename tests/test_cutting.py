"""Micro-batches: few, full, even, and a prompt once in each."""

import random

import pytest
from rollout_cases import Rollout, batch_of, group_of

from fastrl.policy.micro_batch import build_micro_batch, computed_tokens
from fastrl.policy.packing import cut_micro_batches


def test_micro_batches_are_few_full_and_even():
    def cut(lengths: list[int], budget: int) -> list[list[int]]:
        rollouts = batch_of([Rollout([i], [0] * n) for i, n in enumerate(lengths)])
        return [part.tolist() for part in cut_micro_batches(rollouts, budget, is_packed=True)]

    assert cut([], 10) == []
    assert cut([5, 5, 4, 3, 3], 10) == [[0, 1], [2, 3, 4]]  # balancing alone needs three
    assert cut([6, 4, 4, 4], 12) == [[0, 3], [1, 2]]  # first fit: 10 + 8 as well
    with pytest.raises(ValueError, match=r"11 tokens does not fit batch\.micro_batch_tokens=10"):
        cut([3, 11], 10)
    generator = random.Random(0)
    for _ in range(200):
        budget = generator.randrange(20, 200)
        lengths = [generator.randrange(1, budget + 1) for _ in range(generator.randrange(1, 60))]
        parts = cut(lengths, budget)
        totals = [sum(lengths[i] for i in part) for part in parts]
        assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
        assert max(totals) <= budget
        assert len(parts) <= 11 / 9 * 1.5 * sum(lengths) / budget + 1
        assert all([lengths[i] for i in part] == sorted((lengths[i] for i in part), reverse=True) for part in parts)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_prompt_is_computed_once_a_micro_batch_and_the_budget_holds(num_ranks):
    """Groups of 8 with prompts of 20 tokens and short completions: sharing is most of what there is to save."""
    generator = random.Random(1)
    groups = [group_of(20, [generator.randrange(1, 12) for _ in range(8)], seed) for seed in range(30)]
    rollouts = [r for group in groups for r in group]
    generator.shuffle(rollouts)
    batch = batch_of(rollouts)
    parts = cut_micro_batches(batch, 900, is_packed=True, num_ranks=num_ranks)
    assert sorted(i for part in parts for i in part) == list(range(240)) and len(parts) % num_ranks == 0
    computed = [computed_tokens(batch.take(part), is_packed=True) for part in parts]
    assert computed == [len(build_micro_batch(batch.take(part), is_packed=True).input_ids_T) for part in parts]
    assert max(computed) <= 900
    once = sum(20 + sum(len(r.completion_ids) - 1 for r in group) for group in groups)
    assert sum(computed) == once and len(parts) == -(-once // (900 * num_ranks)) * num_ranks
    (long,) = cut_micro_batches(batch_of(group_of(20, [300, 300], 0)), 700, is_packed=True)  # two units that meet again
    assert sorted(long) == [0, 1]
