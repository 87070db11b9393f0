"""Objectives: rewards of a batch → one signed advantage per rollout. Advantage 0 carries no gradient.

rewards_PG is (P prompts, G rollouts each), fp64 or fp32; NaN marks a rollout without a reward (its verifier broke): it
is left out of every baseline and gets advantage 0. Whether a group's rewards differ at all is decided before any
arithmetic (`has_contrast`): a group of equal ones, whatever the number, gets advantages of exactly 0, as does a reward
that is its group's mean but for rounding.

    psr           A = +1 correct,  0 wrong                        arXiv:2506.01347 eq. 2
    nsr           A =  0 correct, −1 wrong                        arXiv:2506.01347 eq. 3
    w-reinforce   A = +λ correct, −1 wrong                        arXiv:2506.01347 eq. 9
    reinforce     A = +1 correct, −1 wrong
    rloo          A = r − mean of the group's other rewards       Ahmadian et al. 2024, arXiv:2402.14740
    grpo          A = (r − mean) / (std + 1e-6), unbiased std     Shao et al. 2024, arXiv:2402.03300
    dr-grpo       A = r − mean                                    Liu et al. 2025, arXiv:2503.20783

Sign objectives call a rollout correct when reward ≥ threshold and use no group: an all-wrong group trains under NSR.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]


class Settings(Protocol):
    positive_weight: float
    correct_threshold: float


SIGN_OBJECTIVES = ("psr", "nsr", "w-reinforce", "reinforce")
ROUNDING = {
    torch.float64: 1e-9,
    torch.float32: 1e-6,
}  # of a group's largest reward: sums in another order differ by less


def signed(rewards_PG: Tensor, *, positive: float, negative: float, threshold: float = 1.0) -> Tensor:
    """`positive` where reward ≥ threshold, `negative` elsewhere, 0 where the reward is missing."""
    advantages = torch.where(rewards_PG >= threshold, positive, negative)
    return torch.where(rewards_PG.isnan(), 0.0, advantages)


def has_contrast(rewards_PG: Tensor) -> Tensor:
    """(P,) bool: do any two of a group's rewards differ by more than rounding? Missing ones are no rewards."""
    missing_PG = rewards_PG.isnan()
    high_P = rewards_PG.masked_fill(missing_PG, -torch.inf).amax(dim=1)
    low_P = rewards_PG.masked_fill(missing_PG, torch.inf).amin(dim=1)
    return high_P - low_P > ROUNDING[rewards_PG.dtype] * torch.maximum(high_P.abs(), low_P.abs())


def _centred(rewards_PG: Tensor) -> Tensor:
    """r − group mean; NaN where the reward is missing, 0 in groups without contrast."""
    centred_PG = rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)
    largest_P1 = rewards_PG.abs().nan_to_num(nan=0.0).amax(dim=1, keepdim=True)
    is_mean_PG = (centred_PG.abs() <= ROUNDING[rewards_PG.dtype] * largest_P1) | ~has_contrast(rewards_PG).unsqueeze(1)
    return centred_PG.masked_fill(is_mean_PG & ~rewards_PG.isnan(), 0.0)


def dr_grpo(rewards_PG: Tensor) -> Tensor:
    """r − group mean."""
    return _centred(rewards_PG).nan_to_num(nan=0.0)


def rloo(rewards_PG: Tensor) -> Tensor:
    """r − mean of the others = (r − mean)·n/(n−1) over the n rewards present; 0 for a lone reward."""
    num_present = (~rewards_PG.isnan()).sum(dim=1, keepdim=True)
    return (_centred(rewards_PG) * num_present / (num_present - 1).clamp(min=1)).nan_to_num(nan=0.0)


def grpo(rewards_PG: Tensor) -> Tensor:
    """(r − group mean) / (unbiased group std + 1e-6)."""
    centred = _centred(rewards_PG)
    num_present = (~rewards_PG.isnan()).sum(dim=1, keepdim=True)
    std = (centred.square().nansum(dim=1, keepdim=True) / (num_present - 1).clamp(min=1)).sqrt()
    return (centred / (std + 1e-6)).nan_to_num(nan=0.0)


OBJECTIVES: dict[str, Callable[[Settings], Objective]] = {
    "psr": lambda c: partial(signed, positive=1.0, negative=0.0, threshold=c.correct_threshold),
    "nsr": lambda c: partial(signed, positive=0.0, negative=-1.0, threshold=c.correct_threshold),
    "w-reinforce": lambda c: partial(signed, positive=c.positive_weight, negative=-1.0, threshold=c.correct_threshold),
    "reinforce": lambda c: partial(signed, positive=1.0, negative=-1.0, threshold=c.correct_threshold),
    "rloo": lambda c: rloo,
    "grpo": lambda c: grpo,
    "dr-grpo": lambda c: dr_grpo,
}


def overlong_penalty(length: int, max_new_tokens: int, buffer: int, penalty: float) -> float:
    """Reward to add (≤ 0) for a completion of `length` tokens: linear over the last `buffer` tokens.

    min(0, (L_max − buffer − length) / buffer) · penalty, DAPO (arXiv:2503.14476) eq. 13.
    """
    if buffer <= 0:
        return 0.0
    return penalty * min(0.0, (max_new_tokens - buffer - length) / buffer)
