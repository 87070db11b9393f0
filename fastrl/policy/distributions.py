"""Whole next-token distributions at a few chosen positions: the one place where log-probs of all V tokens are kept."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastrl.kernels.reference import head_logits
from fastrl.policy.model import Policy
from fastrl.rollouts import Rollout

Position = tuple[int, int]  # index of the rollout, index of the completion token


@torch.no_grad()
def token_distributions(
    policy: Policy, rollouts: Sequence[Rollout], positions: Sequence[Position], token_budget: int, num_rows: int = 64
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices into `positions` with their (n,V) fp32 log-probs at the policy's temperature, on its device.

    Each comes once, at most `num_rows` of them at a time, so no more than that many rows of logits exist at once.
    """
    wanted: dict[int, list[int]] = {}
    for index, (rollout, _) in enumerate(positions):
        wanted.setdefault(rollout, []).append(index)
    members = list(wanted)
    for part in policy.cut([rollouts[i] for i in members], token_budget):
        batch = [members[j] for j in part]
        hidden_NH = policy.hidden_states(policy.micro_batch([rollouts[i] for i in batch]))
        indices, rows, first = [], [], 0
        for i in batch:
            indices += wanted[i]
            rows += [first + positions[index][1] for index in wanted[i]]
            first += len(rollouts[i].completion_ids)
        for start in range(0, len(rows), num_rows):
            logits_nV = head_logits(hidden_NH[rows[start : start + num_rows]], policy.head()).float()
            yield indices[start : start + num_rows], torch.log_softmax(logits_nV / policy.temperature, dim=-1)
