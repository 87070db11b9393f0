"""Objectives: the rewards of a batch → one signed advantage per rollout. Advantage 0 carries no gradient.

    psr           A = +1 correct,  0 wrong                        arXiv:2506.01347 eq. 2
    nsr           A =  0 correct, −1 wrong                        arXiv:2506.01347 eq. 3
    w-reinforce   A = +λ correct, −1 wrong                        arXiv:2506.01347 eq. 9
    reinforce     A = +1 correct, −1 wrong
    negative-reward  A = min(r, 0): NSR of a signed reward
    rloo          A = r − mean of the group's other rewards       Ahmadian et al. 2024, arXiv:2402.14740
    grpo          A = (r − mean) / (std + 1e-6), unbiased std     Shao et al. 2024, arXiv:2402.03300
    dr-grpo       A = r − mean                                    Liu et al. 2025, arXiv:2503.20783
    asymre        A = r − (mean + δ)                              Arnal et al. 2025, arXiv:2506.20520
    pmpo          A = +α·n/n₊ correct, −(1−α)·n/n₋ wrong          Abdolmaleki et al. 2024, arXiv:2410.04166v3, eq. 10

Sign objectives look at each rollout alone: an all-wrong group trains under NSR. Group objectives compare the rewards of
a prompt. Whether these differ at all is decided before any arithmetic (`has_contrast`): equal rewards, whatever the
number, give advantages of exactly 0; with AsymRE exactly −δ, which reinforces all-wrong groups where δ < 0.

Legend: P prompts, G rollouts of each; R rollouts, N completion tokens of a batch.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Le

from fastrl.rollouts import Rollouts

ROUNDING = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-6}  # of a group's largest reward: no difference


class Objective(Protocol):
    """Its fields are its settings, under [algorithm.<name>]. compares_group: needs several rollouts of a prompt."""

    compares_group: ClassVar[bool]

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        """(P,G) advantages. rewards_PG are floats, NaN where the verifier broke: those get 0 and enter no baseline."""
        ...


def _signed(rewards_PG: np.ndarray, is_correct_PG: np.ndarray, positive: float, negative: float) -> np.ndarray:
    return np.where(np.isnan(rewards_PG), 0.0, np.where(is_correct_PG, positive, negative))


@dataclass(frozen=True)
class NoObjective:
    """No credit from rewards: signals alone teach."""

    compares_group: ClassVar[bool] = False

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return np.zeros(rewards_PG.shape)


@dataclass(frozen=True)
class Psr:
    """Positive sample reinforcement: reinforce what was right, leave the rest alone."""

    compares_group: ClassVar[bool] = False

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return _signed(rewards_PG, is_correct_PG, 1.0, 0.0)


@dataclass(frozen=True)
class Nsr:
    """Negative sample reinforcement: penalise what was wrong, leave the rest alone."""

    compares_group: ClassVar[bool] = False

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return _signed(rewards_PG, is_correct_PG, 0.0, -1.0)


@dataclass(frozen=True)
class WReinforce:
    """REINFORCE with a weight on its positive half."""

    compares_group: ClassVar[bool] = False
    positive_weight: Annotated[float, Ge(0)] = 0.1
    """λ: the advantage of a correct completion (a wrong one has −1)."""

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return _signed(rewards_PG, is_correct_PG, self.positive_weight, -1.0)


@dataclass(frozen=True)
class Reinforce:
    """+1 or −1."""

    compares_group: ClassVar[bool] = False

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return _signed(rewards_PG, is_correct_PG, 1.0, -1.0)


@dataclass(frozen=True)
class NegativeReward:
    """min(r, 0): NSR of a signed reward, which leaves what is worth 0 alone (task.reward = ternary: abstentions)."""

    compares_group: ClassVar[bool] = False

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return np.minimum(np.nan_to_num(rewards_PG, nan=0.0), 0.0)


@dataclass(frozen=True)
class DrGrpo:
    """r − group mean."""

    compares_group: ClassVar[bool] = True

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return np.nan_to_num(_centred(rewards_PG), nan=0.0)


@dataclass(frozen=True)
class Rloo:
    """r − mean of the others = (r − mean)·n/(n−1) over the n rewards present; 0 for a lone reward."""

    compares_group: ClassVar[bool] = True

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        num_present = _num_present(rewards_PG)
        return np.nan_to_num(_centred(rewards_PG) * num_present / np.maximum(num_present - 1, 1), nan=0.0)


@dataclass(frozen=True)
class Grpo:
    """(r − group mean) / (unbiased group std + 1e-6)."""

    compares_group: ClassVar[bool] = True

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        centred_PG = _centred(rewards_PG)
        squares_P1 = np.nansum(np.square(centred_PG), axis=1, keepdims=True)
        std_P1 = np.sqrt(squares_P1 / np.maximum(_num_present(rewards_PG) - 1, 1))
        return np.nan_to_num(centred_PG / (std_P1 + 1e-6), nan=0.0)


@dataclass(frozen=True)
class AsymRe:
    """r − (group mean + δ): a baseline below the mean keeps stale rollouts from collapsing the policy."""

    compares_group: ClassVar[bool] = True
    delta: Annotated[float, "any number"] = -0.1
    """δ, added to the baseline, in units of the reward. Below 0: what was right counts for more."""

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        return np.nan_to_num(_centred(rewards_PG) - self.delta, nan=0.0)


@dataclass(frozen=True)
class Pmpo:
    """α times the mean over correct completions, less (1 − α) times the mean over wrong ones. kl_coef is its β."""

    compares_group: ClassVar[bool] = False
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    """Weight of what was right. Wrong ones alone are bounded where algorithm.kl_coef is above 1 − alpha."""

    def __call__(self, rewards_PG: np.ndarray, is_correct_PG: np.ndarray) -> np.ndarray:
        """Both means are over the batch: n completions have a verdict, n₊ are correct, n₋ wrong."""
        num_positive = np.sum(is_correct_PG & ~np.isnan(rewards_PG))
        num_negative = np.sum(~is_correct_PG & ~np.isnan(rewards_PG))
        num_present = num_positive + num_negative
        positive = self.alpha * num_present / max(num_positive, 1)
        return _signed(rewards_PG, is_correct_PG, positive, -(1 - self.alpha) * num_present / max(num_negative, 1))


def _num_present(rewards_PG: np.ndarray) -> np.ndarray:
    """(P,1): rewards of each group that are there."""
    return (~np.isnan(rewards_PG)).sum(axis=1, keepdims=True)


def has_contrast(rewards_PG: np.ndarray) -> np.ndarray:
    """(P,) bool: do any two of a group's rewards differ by more than rounding? Missing ones are no rewards."""
    missing_PG = np.isnan(rewards_PG)
    high_P = np.where(missing_PG, -np.inf, rewards_PG).max(axis=1)
    low_P = np.where(missing_PG, np.inf, rewards_PG).min(axis=1)
    return high_P - low_P > ROUNDING[rewards_PG.dtype] * np.maximum(np.abs(high_P), np.abs(low_P))


def _centred(rewards_PG: np.ndarray) -> np.ndarray:
    """r − group mean; NaN where the reward is missing, 0 in groups without contrast."""
    sums_P1 = np.nansum(rewards_PG, axis=1, keepdims=True, dtype=rewards_PG.dtype)
    centred_PG = rewards_PG - sums_P1 / np.maximum(_num_present(rewards_PG), 1).astype(rewards_PG.dtype)
    largest_P1 = np.abs(np.nan_to_num(rewards_PG, nan=0.0)).max(axis=1, keepdims=True)
    is_mean_PG = np.abs(centred_PG) <= ROUNDING[rewards_PG.dtype] * largest_P1
    is_mean_PG |= ~has_contrast(rewards_PG)[:, None]
    return np.where(is_mean_PG & ~np.isnan(rewards_PG), 0.0, centred_PG)


def objective_credits(objective: Objective, batch: Rollouts, is_correct_R: np.ndarray) -> np.ndarray:
    """(N,): each rollout's advantage for all of its tokens. Groups lie one behind the other, of one size."""
    shape = (int(batch.groups_R.max()) + 1, -1)
    rewards_PG = (batch.rewards_R + batch.penalties_R).reshape(shape)
    advantages_PG = objective(rewards_PG, is_correct_R.reshape(shape))
    return batch.by_token(advantages_PG.ravel())


OBJECTIVES: dict[str, type[Objective]] = {
    "psr": Psr,
    "nsr": Nsr,
    "w-reinforce": WReinforce,
    "reinforce": Reinforce,
    "negative-reward": NegativeReward,
    "rloo": Rloo,
    "grpo": Grpo,
    "dr-grpo": DrGrpo,
    "asymre": AsymRe,
    "pmpo": Pmpo,
    "none": NoObjective,
}
SIGN_OBJECTIVES = ("psr", "nsr", "w-reinforce", "reinforce")  # ask of a reward whether it is correct, and no more
