"""Rollouts made on the spot, one object each: tests read and change single ones. `batch_of` makes the columns."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollouts
from fastrl.sampling.protocol import Sampler, SamplingSettings, sample


@dataclass
class Rollout:
    prompt_ids: list[int]
    completion_ids: list[int]
    advantage: float = 0.0
    group: int = 0
    finish_reason: str = "stop"
    sampler_logprobs: list[float] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids


def batch_of(rollouts: Sequence[Rollout]) -> Rollouts:
    """The same as columns. No sampler_logprobs: zeros; no loss_mask: ones."""
    sizes = [len(r.completion_ids) for r in rollouts]
    batch = Rollouts.of(
        [r.prompt_ids for r in rollouts],
        [r.completion_ids for r in rollouts],
        sampler_logprobs=[r.sampler_logprobs or [0.0] * n for r, n in zip(rollouts, sizes, strict=True)],
        is_truncated=[r.finish_reason == "length" for r in rollouts],
        groups=[r.group for r in rollouts],
    )
    masks = [r.loss_mask or [1] * n for r, n in zip(rollouts, sizes, strict=True)]
    mask_N = np.array([m for row in masks for m in row], dtype=bool)
    credits_N = np.repeat([r.advantage for r in rollouts], sizes).astype(np.float32)
    return replace(batch, loss_mask_N=mask_N, credits_N=np.where(mask_N, credits_N, 0).astype(np.float32))


def credited(batch: Rollouts, credit: float = 1.0) -> Rollouts:
    """With this credit for every token."""
    return replace(batch, credits_N=np.full(batch.num_tokens, credit, dtype=np.float32))


def rows_of(batch: Rollouts) -> list[Rollout]:
    """One object each, without credits."""
    return [
        Rollout(
            batch.prompt(i).tolist(),
            batch.completion(i).tolist(),
            group=int(batch.groups_R[i]),
            finish_reason="length" if batch.is_truncated_R[i] else "stop",
            sampler_logprobs=batch.of_rollout(i, batch.sampler_logprobs_N).tolist(),
            loss_mask=batch.of_rollout(i, batch.loss_mask_N).astype(int).tolist(),
        )
        for i in range(len(batch))
    ]


def drawn(sampler: Sampler, prompts: list[list[int]], settings: SamplingSettings, seeds: list[int]) -> list[Rollout]:
    return rows_of(sample(sampler, prompts, settings, seeds))


def scores_of(policy: Policy, rollouts: Sequence[Rollout], budget: int) -> list[tuple[list[float], list[float]]]:
    """(log-probs, entropies) of each."""
    batch = batch_of(rollouts)
    columns = score(policy, batch, budget)
    return [tuple(batch.of_rollout(i, column).tolist() for column in columns) for i in range(len(batch))]


def group_of(prompt_length: int, completions: list[int], seed: int) -> list[Rollout]:
    """Rollouts of one prompt."""
    generator = random.Random(seed)
    prompt = [generator.randrange(2, 123) for _ in range(prompt_length)]
    rows = [[generator.randrange(2, 123) for _ in range(length)] for length in completions]
    return [Rollout(list(prompt), r, 0.5 - i % 2) for i, r in enumerate(rows)]
