"""Reductions: the weight w of each rollout's tokens in one optimizer step, L = Σ_i w_i Σ_t ℓ_{i,t}.

Each term of the loss is averaged over the tokens that it acts on: the policy term over those of rollouts with an
advantage, a regulariser (KL, entropy) over all that are computed. So a reduction is asked once for each of the two.
All but the last are global values of the update, so the result does not depend on how it is cut into micro-batches.

    token-mean-kept    1 / Σ T_i over rollouts that the term acts on
    token-mean-all     1 / Σ T_i over all rollouts of the mini-batch              DAPO, arXiv:2503.14476
    sequence-mean      1 / (B·T_i)                                               GRPO, arXiv:2402.03300
    constant           1 / (B·T_max), T_max the token limit                      Dr.GRPO, arXiv:2503.20783
    micro-batch-mean   (sequences in the micro-batch / mini-batch size) / Σ T_i over the micro-batch, both counting
                       rollouts that the term acts on (the NSR authors' code; depends on the micro-batch size)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class UpdateShape:
    """What a reduction may know about one optimizer step of B rollouts.

    num_tokens_B: loss tokens of each rollout; has_gradient_B: does the term in question act on it; micro_batch_B: index
    of its micro-batch (−1: not computed); max_new_tokens: the token limit; nominal_size: rollouts of a full mini-batch.
    """

    num_tokens_B: np.ndarray
    has_gradient_B: np.ndarray
    micro_batch_B: np.ndarray
    max_new_tokens: int
    nominal_size: int

    @property
    def num_sequences(self) -> int:
        """Rollouts with a token that the loss may use; at least 1."""
        return max(int((self.num_tokens_B > 0).sum()), 1)


def token_mean_kept(shape: UpdateShape) -> np.ndarray:
    """Mean over the tokens of rollouts that the term acts on."""
    return _everywhere(shape, shape.num_tokens_B[shape.has_gradient_B].sum())


def token_mean_all(shape: UpdateShape) -> np.ndarray:
    """Mean over the tokens of all rollouts of the mini-batch."""
    return _everywhere(shape, shape.num_tokens_B.sum())


def sequence_mean(shape: UpdateShape) -> np.ndarray:
    """Mean over rollouts of the mean over their tokens."""
    return 1.0 / (shape.num_sequences * np.maximum(shape.num_tokens_B, 1))


def constant(shape: UpdateShape) -> np.ndarray:
    """The same for every token, whatever the lengths: 1 / (rollouts · token limit)."""
    return _everywhere(shape, shape.num_sequences * shape.max_new_tokens)


def micro_batch_mean(shape: UpdateShape) -> np.ndarray:
    """Mean over the tokens of each micro-batch: depends on the micro-batch size."""
    weights_B = np.zeros(len(shape.num_tokens_B))
    for index in np.unique(shape.micro_batch_B[shape.micro_batch_B >= 0]):
        rows = (shape.micro_batch_B == index) & shape.has_gradient_B
        weights_B[rows] = rows.sum() / shape.nominal_size / max(shape.num_tokens_B[rows].sum(), 1)
    return weights_B


def _everywhere(shape: UpdateShape, count: int) -> np.ndarray:
    return np.full(len(shape.num_tokens_B), 1.0 / max(count, 1))


REDUCTIONS: dict[str, Callable[[UpdateShape], np.ndarray]] = {
    "token-mean-kept": token_mean_kept,
    "token-mean-all": token_mean_all,
    "sequence-mean": sequence_mean,
    "constant": constant,
    "micro-batch-mean": micro_batch_mean,
}
