"""Factors: what multiplies the credits that the objective and the signals gave, token by token.

A signal adds credit of its own; a factor only weighs what is there. Each of `algorithm.factors` sees the batch with the
credits so far and returns factors ≥ 0 of them, so no credit changes its sign, and a token without credit gets none.

    high-entropy          1 for the tokens of the highest entropies, 0 for the others         arXiv:2506.01939
    penalty-decay         of negative credits max(floor, 2^(−(step − 1)/half_life))           A-NSR, arXiv:2605.07137
    penalty-confidence    of negative credits c^power, c = exp(mean_t log μ(y_t))             CW-NSR, arXiv:2605.07137

μ is the policy that drew the completion. The shapes and constants of A-NSR's schedule and of CW-NSR's weight are not
known to us: those here are our own.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge, Gt, Le

from fastrl.learning.tools import Tools
from fastrl.rollouts import Rollouts


class Factor(Protocol):
    """Its fields are its settings, under [algorithm.<name>]."""

    def __call__(self, batch: Rollouts, tools: Tools) -> np.ndarray:
        """(N,) float64 ≥ 0, factors of batch.credits_N."""


@dataclass(frozen=True)
class HighEntropy:
    """Only the tokens at which the policy was least sure keep their credit."""

    share: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of the batch's tokens that keep it: those of the highest entropies."""

    def __call__(self, batch: Rollouts, tools: Tools) -> np.ndarray:
        """Ranked over the tokens that the loss may use, with credit or without; equal entropies are kept together."""
        entropy_N = tools.entropies(batch)
        usable = entropy_N[batch.loss_mask_N]
        if not len(usable):
            return np.ones(batch.num_tokens)
        num_dropped = len(usable) - math.ceil(self.share * len(usable))
        return (entropy_N >= np.partition(usable, num_dropped)[num_dropped]).astype(np.float64)


@dataclass(frozen=True)
class PenaltyDecay:
    """Negative credits count in full at first, and less with every step."""

    half_life: Annotated[float, Gt(0)] = 50.0
    """Steps in which their weight halves."""
    floor: Annotated[float, Ge(0), Le(1)] = 0.1
    """The least weight."""

    def __call__(self, batch: Rollouts, tools: Tools) -> np.ndarray:
        weight = max(self.floor, 2.0 ** (-(tools.step - 1) / self.half_life))
        return np.where(batch.credits_N < 0, weight, 1.0)


@dataclass(frozen=True)
class PenaltyConfidence:
    """Negative credits count by how likely the completion was: confident errors more, exploratory ones less."""

    power: Annotated[float, Ge(0)] = 1.0
    """Of the confidence, the geometric mean of the completion's token probabilities; 0: all errors alike."""

    def __call__(self, batch: Rollouts, tools: Tools) -> np.ndarray:
        logprobs_N = np.where(batch.loss_mask_N, batch.sampler_logprobs_N, 0.0)
        means_R = batch.sum_by_rollout(logprobs_N) / np.maximum(batch.loss_tokens_R, 1)
        return np.where(batch.credits_N < 0, batch.by_token(np.exp(self.power * means_R)), 1.0)


FACTORS: dict[str, type[Factor]] = {
    "high-entropy": HighEntropy,
    "penalty-decay": PenaltyDecay,
    "penalty-confidence": PenaltyConfidence,
}
