"""Sequence surrogates: the weight of a token depends on all tokens of its completion. Computed in two phases.

A kernel sees tokens one by one. So before each update that others of the batch have preceded, its rollouts are scored
once more, without gradient, under the policy that is about to move; from these log-probs and the old ones comes a
factor c of each credit, and the token pays −c·A·logp. At that point of the weights the gradient is the formula's, the
value of the loss is not. The first update of a batch has ratios of 1 and needs no pass.

    gspo    s = exp(mean_t (log π_t − log π_old,t));  min(A·s, A·clip(s, 1 − low, 1 + high)) for every token, averaged
            over it: ∂/∂log π_t = A·s/T, or 0 where the bound is what counts        GSPO, arXiv:2507.18071

`algorithm.reduction = "sequence-mean"` is the paper's; others weigh the same tokens otherwise.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge, Lt

from fastrl.kernels.surrogates import MAX_LOG_RATIO
from fastrl.rollouts import Rollouts


class SequenceSurrogate(Protocol):
    """Its fields are its settings, under [algorithm.<name>]."""

    def __call__(self, rollouts: Rollouts, logprobs_N: np.ndarray) -> np.ndarray:
        """(N,) float64 factors of credits_N; exactly 0 where a bound cuts the gradient.

        logprobs_N: under the policy that is about to move, NaN for rollouts that nobody computes. The rollouts have
        old_logprobs_N.
        """


@dataclass(frozen=True)
class Gspo:
    """GSPO: PPO's clip on the geometric mean of a completion's ratios, the same for all of its tokens."""

    low: Annotated[float, Ge(0), Lt(1)] = 3e-4
    """A ratio below 1 − low stops the gradient of a negative advantage."""
    high: Annotated[float, Ge(0)] = 4e-4
    """A ratio above 1 + high stops the gradient of a positive advantage."""

    def __call__(self, rollouts: Rollouts, logprobs_N: np.ndarray) -> np.ndarray:
        gaps_N = np.where(rollouts.loss_mask_N, logprobs_N.astype(np.float64) - rollouts.old_logprobs_N, 0.0)
        means_R = rollouts.sum_by_rollout(gaps_N) / np.maximum(rollouts.loss_tokens_R, 1)
        ratio_N = rollouts.by_token(np.exp(np.clip(means_R, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
        is_high_N = (rollouts.credits_N > 0) & (ratio_N > 1 + self.high)
        is_low_N = (rollouts.credits_N < 0) & (ratio_N < 1 - self.low)
        return np.where(is_high_N | is_low_N, 0.0, ratio_N)


SEQUENCE_SURROGATES: dict[str, type[SequenceSurrogate]] = {
    "gspo": Gspo,
}
