"""From rollouts to micro-batches: which rollouts run together, and the tensors that one forward takes.

Sequences are padded on the right; a causal model never looks at padding that comes later, so no mask is needed.
Only positions that predict a completion token reach the head: hidden state t−1 predicts token t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl.rollouts import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """input_ids_BL int64; rows_N indexes the flattened (B·L) hidden states; the rest are per completion token, (N,).

    token_weights_N is 0 where the loss mask is. The optional log-probs are NaN-free fp32 or None for all.
    """

    input_ids_BL: Tensor
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


def cut_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped so that (sequences × longest) ≤ token_budget, longest first; every index appears once.

    ValueError when a single sequence exceeds the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > token_budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens does not fit batch.micro_batch_tokens={token_budget}; "
            "raise the budget or shorten prompts or sampler.max_new_tokens"
        )
    micro_batches: list[list[int]] = []
    for i in order:
        last = micro_batches[-1] if micro_batches else None
        if last is None or (len(last) + 1) * lengths[last[0]] > token_budget:
            micro_batches.append([i])
        else:
            last.append(i)
    return micro_batches


def build_micro_batch(
    rollouts: Sequence[Rollout], token_weights: Sequence[float] | None = None, *, has_importance: bool = False
) -> MicroBatch:
    """Tensors of one forward. token_weights: one per rollout, for each of its tokens that the loss mask keeps.

    has_importance: carry the sampler's log-probs, for truncated importance sampling.
    """
    token_weights = token_weights if token_weights is not None else [0.0] * len(rollouts)
    width = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    ids, rows, targets, advantages, weights = [], [], [], [], []
    for index, (rollout, weight) in enumerate(zip(rollouts, token_weights, strict=True)):
        tokens = rollout.prompt_ids + rollout.completion_ids
        ids.append(tokens + [0] * (width - len(tokens)))
        first = index * width + len(rollout.prompt_ids) - 1
        rows.extend(range(first, first + len(rollout.completion_ids)))
        targets.extend(rollout.completion_ids)
        factors = rollout.importance or [1.0] * len(rollout.completion_ids)
        advantages.extend(rollout.advantage * m * f for m, f in zip(rollout.loss_mask, factors, strict=True))
        weights.extend(weight * m for m in rollout.loss_mask)
    return MicroBatch(
        torch.tensor(ids),
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
