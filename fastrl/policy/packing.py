"""From rollouts to micro-batches: which rollouts run together, and the tensors that one forward takes.

Sequences lie one behind the other on a single row, without padding; positions restart with each. Only positions that
predict a completion token reach the head: hidden state t−1 predicts token t.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl.policy.attention import cumulative
from fastrl.rollouts import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of `lengths` on one row of T tokens: input_ids_T, positions_T int64, cu_seqlens (S+1,) int32.

    rows_N indexes the T hidden states; the rest are per completion token, (N,). token_weights_N is 0 where the loss
    mask is. The optional log-probs are NaN-free fp32 or None for all.
    """

    lengths: tuple[int, ...]
    input_ids_T: Tensor
    positions_T: Tensor
    cu_seqlens: Tensor
    rows_N: Tensor
    targets_N: Tensor
    advantages_N: Tensor
    token_weights_N: Tensor
    old_logprobs_N: Tensor | None = None
    sampler_logprobs_N: Tensor | None = None
    ref_logprobs_N: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return MicroBatch(**moved)


def computed_tokens(lengths: Sequence[int], *, is_packed: bool) -> int:
    """Tokens that the forward of one micro-batch computes, padding included."""
    return sum(lengths) if is_packed else len(lengths) * max(lengths)


def cut_micro_batches(
    lengths: Sequence[int], token_budget: int, *, is_packed: bool, num_ranks: int = 1
) -> list[list[int]]:
    """Indices grouped so that the tokens computed are ≤ token_budget; longest first; every index appears once.

    Packed: as few micro-batches as first-fit-decreasing makes, then of equal size where possible, and a multiple of
    num_ranks of them where there are enough sequences. Padded: neighbours in length. ValueError when a single sequence
    exceeds the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > token_budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens does not fit batch.micro_batch_tokens={token_budget}; "
            "raise the budget or shorten prompts or sampler.max_new_tokens"
        )
    if not order:
        return []
    if not is_packed:
        return _cut_padded(order, lengths, token_budget)
    fallback = _first_fit(order, lengths, token_budget)
    fewest = math.ceil(sum(lengths) / token_budget)
    for count in range(fewest + -fewest % num_ranks, len(fallback) + num_ranks, num_ranks):
        if count <= len(lengths) and (balanced := _balance(order, lengths, token_budget, count)):
            return balanced
    return fallback


def spread(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Indices of `sizes` in num_parts lists of nearly equal sums, each in ascending order."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return [sorted(part) for part in _balance(order, sizes, sum(sizes), num_parts)]


def _first_fit(order: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Each sequence into the first micro-batch with room for it."""
    rooms: list[int] = []
    parts: list[list[int]] = []
    for i in order:
        place = next((p for p, room in enumerate(rooms) if room >= lengths[i]), None)
        if place is None:
            place = len(rooms)
            rooms.append(token_budget)
            parts.append([])
        parts[place].append(i)
        rooms[place] -= lengths[i]
    return parts


def _balance(order: list[int], lengths: Sequence[int], token_budget: int, count: int) -> list[list[int]] | None:
    """Each sequence into the emptiest of `count` micro-batches; None where one overflows."""
    heap = [(0, part) for part in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        used, part = heap[0]
        if used + lengths[i] > token_budget:
            return None
        parts[part].append(i)
        heapq.heapreplace(heap, (used + lengths[i], part))
    return parts


def _cut_padded(order: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in order:
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > token_budget:
            parts.append([i])
        else:
            parts[-1].append(i)
    return parts


def build_micro_batch(
    rollouts: Sequence[Rollout], token_weights: Sequence[float] | None = None, *, has_importance: bool = False
) -> MicroBatch:
    """Tensors of one forward. token_weights: one per rollout, for each of its tokens that the loss mask keeps.

    has_importance: carry the sampler's log-probs, for truncated importance sampling.
    """
    token_weights = token_weights if token_weights is not None else [0.0] * len(rollouts)
    ids, positions, rows, targets, advantages, weights = [], [], [], [], [], []
    for rollout, weight in zip(rollouts, token_weights, strict=True):
        first = len(ids) + len(rollout.prompt_ids) - 1
        ids.extend(rollout.prompt_ids + rollout.completion_ids)
        positions.extend(range(len(rollout.prompt_ids) + len(rollout.completion_ids)))
        rows.extend(range(first, first + len(rollout.completion_ids)))
        targets.extend(rollout.completion_ids)
        factors = rollout.importance or [1.0] * len(rollout.completion_ids)
        advantages.extend(rollout.advantage * m * f for m, f in zip(rollout.loss_mask, factors, strict=True))
        weights.extend(weight * m for m in rollout.loss_mask)
    lengths = tuple(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    return MicroBatch(
        lengths,
        torch.tensor(ids, dtype=torch.int64),
        torch.tensor(positions, dtype=torch.int64),
        cumulative(lengths),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(advantages, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        _flat([r.old_logprobs for r in rollouts]),
        _flat([r.sampler_logprobs for r in rollouts]) if has_importance else None,
        _flat([r.ref_logprobs for r in rollouts]),
    )


def _flat(values: Sequence[list[float] | None]) -> Tensor | None:
    if all(row is None for row in values):
        return None
    return torch.tensor([v for row in values for v in row], dtype=torch.float32)
