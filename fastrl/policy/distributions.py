"""Whole next-token distributions at a few chosen positions: the one place where log-probs of all V tokens are kept."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastrl.kernels.reference import head_logits
from fastrl.policy.model import Policy
from fastrl.rollouts import Rollouts

Position = tuple[int, int]  # index of the rollout, index of the completion token, which is no reply


@torch.no_grad()
def token_distributions(
    policy: Policy, rollouts: Rollouts, positions: Sequence[Position], token_budget: int, num_rows: int = 64
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices into `positions` with their (n,V) fp32 log-probs at the policy's temperature, on its device.

    Each comes once, at most `num_rows` of them at a time, so no more than that many rows of logits exist at once.
    """
    wanted: dict[int, list[int]] = {}
    for index, (rollout, _) in enumerate(positions):
        wanted.setdefault(rollout, []).append(index)
    members = np.array(list(wanted), dtype=np.int64)
    for part in policy.cut(rollouts.take(members), token_budget):
        batch = rollouts.take(members[part])
        hidden_NH = policy.hidden_states(policy.micro_batch(batch))
        indices, rows, places_N = [], [], batch.among_all(np.arange(len(hidden_NH), dtype=np.float64))
        for first, i in zip(batch.starts_R.tolist(), members[part].tolist(), strict=True):
            indices += wanted[i]
            rows += [int(places_N[first + positions[index][1]]) for index in wanted[i]]
        for start in range(0, len(rows), num_rows):
            logits_nV = head_logits(hidden_NH[rows[start : start + num_rows]], policy.head()).float()
            yield indices[start : start + num_rows], torch.log_softmax(logits_nV / policy.temperature, dim=-1)
