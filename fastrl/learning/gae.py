"""Generalised advantage estimation: what came, and what a critic still expected, token by token.

    δ_t = r_t + γ·V_{t+1} − V_t          A_t = δ_t + γλ·A_{t+1}          target of the critic: A_t + V_t
                                                                                  Schulman et al. 2015, arXiv:1506.02438

r_t is −kl_coef·(log π(y_t) − log π_ref(y_t)) for every token, plus the completion's reward for its last one. With
γ = λ = 1 and no penalty A_t = R − V_t. V is 0 behind the last token, also where a completion was cut. Tokens that the
loss may not use and completions without a reward are left out: the recursion steps over them.

The defaults are those of the PPO baseline in arXiv:2506.01347, as its authors' code has them (a fork of verl 0.2): γ =
λ = 1, advantages whitened over the batch, 0.5·max((V − G)², (clip(V, V_old ± 0.5) − G)²), a learning rate of 1e-5 for
the critic. Their penalty has the weight 1e-3; here it is off unless asked for, because it takes a third model.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le

from fastrl.learning.objectives import has_contrast
from fastrl.rollouts import Rollouts


@dataclass(frozen=True)
class Gae:
    """PPO's advantage: generalised advantage estimation with a critic that is trained beside the policy."""

    compares_group: ClassVar[bool] = False
    gamma: Annotated[float, Ge(0), Le(1)] = 1.0
    """γ: what a reward loses with every token that it comes later."""
    lam: Annotated[float, Ge(0), Le(1)] = 1.0
    """λ: 1 trusts the rewards that came, 0 the critic's next value."""
    whiten: bool = True
    """Shift and scale the advantages of a batch to mean 0 and variance 1 over its tokens."""
    kl_coef: Annotated[float, Ge(0)] = 0.0
    """Weight of log π − log π_ref, taken from each token's reward (k1); 0: no reference model is held."""
    critic_lr: Annotated[float, Ge(0)] = 1e-5
    """Peak learning rate of the critic; whatever else its optimizer has is [optimizer]'s."""
    value_clip: Annotated[float, Gt(0)] = 0.5
    """Values that have moved further than this from those before the updates gain nothing by moving on."""

    def models(self) -> dict[str, str]:
        return {"reference": ""} if self.kl_coef else {}

    def advantages(self, rewards_N: np.ndarray, values_N: np.ndarray, lengths_R: np.ndarray) -> np.ndarray:
        """(N,) float64, not whitened. Of R rows of lengths_R tokens, one behind the other."""
        lasts_R = np.cumsum(lengths_R)[lengths_R > 0] - 1
        next_N = np.append(values_N[1:], 0.0).astype(np.float64)
        next_N[lasts_R] = 0.0
        advantages_N = rewards_N + self.gamma * next_N - values_N
        for back in range(2, int(lengths_R.max(initial=0)) + 1):
            here = np.cumsum(lengths_R)[lengths_R >= back] - back
            advantages_N[here] += self.gamma * self.lam * advantages_N[here + 1]
        return advantages_N

    def credits(self, advantages_N: np.ndarray) -> np.ndarray:
        """(N,) as the policy gets them: whitened with the unbiased variance, or as they are.

        Equal advantages are worth 0, whatever rounding makes of their differences to the mean.
        """
        if not self.whiten:
            return advantages_N
        if not len(advantages_N) or not has_contrast(advantages_N[None])[0]:
            return np.zeros(len(advantages_N))
        return (advantages_N - advantages_N.mean()) / np.sqrt(advantages_N.var(ddof=1) + 1e-8)


def is_taught(batch: Rollouts) -> np.ndarray:
    """(N,) bool: tokens that the loss may use, of completions that have a reward."""
    return batch.loss_mask_N & ~batch.by_token(np.isnan(batch.rewards_R))


def token_rewards(batch: Rollouts, is_taught_N: np.ndarray, penalties_N: np.ndarray | float = 0.0) -> np.ndarray:
    """Of the taught tokens alone, float64: −penalty, and for the last one of a completion its reward as well."""
    lengths_R = batch.sum_by_rollout(is_taught_N).astype(np.int64)
    rewards_n = np.zeros(lengths_R.sum()) - penalties_N
    lasts = np.cumsum(lengths_R)[lengths_R > 0] - 1
    rewards_n[lasts] += (batch.rewards_R + batch.penalties_R)[lengths_R > 0]
    return rewards_n


def explained_variance(values_N: np.ndarray, returns_N: np.ndarray) -> float:
    """1 − Var(return − value) / Var(return): 1 for a critic that knows, 0 for one that says a constant; NaN where all
    returns are equal.
    """
    if not len(returns_N) or not has_contrast(returns_N[None])[0]:
        return float("nan")
    return float(1 - np.var(returns_N - values_N) / np.var(returns_N))
