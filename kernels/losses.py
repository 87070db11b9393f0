"""Token-level policy losses: how the loss of one token depends on its log-probability.

A surrogate maps (logp, old logp, signed advantage) to a loss ℓ and a flag: did clipping remove the gradient here?
With ρ = exp(logp − old), clamped to e^±20:

    Reinforce   ℓ = −A·logp                                              Williams 1992
    PpoClip     ℓ = max(−A·ρ, −A·clip(ρ, 1−ε_low, 1+ε_high))             Schulman et al. 2017, arXiv:1707.06347, eq. 7
                with `dual` d: for A < 0 additionally ℓ ≤ −A·d           Ye et al. 2020, arXiv:1912.09729, eq. 5
    Cispo       ℓ = −sg[min(ρ, cap)]·A·logp                             MiniMax-M1, arXiv:2506.13585, eq. 4 (upper side)

`old=None` means that the policy has not moved since sampling: ρ ≡ 1 in value, with the gradient of ρ.
A new surrogate is a new class here (and its Triton twin), not a new flag.
"""

from dataclasses import astuple, dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


class Surrogate(Protocol):
    """`surrogate(logprobs, old_logprobs, advantages) -> (loss, clipped)`, all (N,), differentiable in `logprobs`.

    loss is linear in the size of the advantage: k·A gives k times the loss for k ≥ 0.
    """

    name: ClassVar[str]

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor | None, advantages: Tensor) -> tuple[Tensor, Tensor]: ...


def _ratio(logprobs: Tensor, old_logprobs: Tensor | None) -> Tensor:
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    return (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True)
class Reinforce:
    """ℓ = −A·logp: the plain score-function estimator; never clips, ignores the old policy."""

    name: ClassVar[str] = "reinforce"

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor | None, advantages: Tensor) -> tuple[Tensor, Tensor]:
        return -advantages * logprobs, torch.zeros_like(logprobs, dtype=torch.bool)


@dataclass(frozen=True)
class PpoClip:
    """PPO's clipped ratio; `dual` (> 1, 0 = off) bounds the loss of negative advantages from above."""

    name: ClassVar[str] = "ppo_clip"
    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.low < 1 and self.high >= 0):
            raise ValueError(f"ppo_clip needs 0 <= low < 1 and high >= 0, got low={self.low}, high={self.high}")
        if self.dual and self.dual <= 1:
            raise ValueError(f"ppo_clip dual must be above 1, or 0 for none, got {self.dual}")

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor | None, advantages: Tensor) -> tuple[Tensor, Tensor]:
        ratio = _ratio(logprobs, old_logprobs)
        clipped_ratio = ratio.clamp(1 - self.low, 1 + self.high)
        loss = torch.maximum(-advantages * ratio, -advantages * clipped_ratio)
        clipped = ((advantages > 0) & (ratio > 1 + self.high)) | ((advantages < 0) & (ratio < 1 - self.low))
        if self.dual:
            bound = -advantages * self.dual
            over = (advantages < 0) & (loss > bound)
            loss, clipped = torch.where(over, bound, loss), clipped | over
        return loss, clipped


@dataclass(frozen=True)
class Cispo:
    """−sg[min(ρ, cap)]·A·logp: the importance weight is capped, but no token ever loses its gradient."""

    name: ClassVar[str] = "cispo"
    cap: float = 5.0

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise ValueError(f"cispo cap must be positive, got {self.cap}")

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor | None, advantages: Tensor) -> tuple[Tensor, Tensor]:
        ratio = _ratio(logprobs, old_logprobs).detach()
        return -ratio.clamp(max=self.cap) * advantages * logprobs, (ratio > self.cap) & (advantages != 0)


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Reinforce, PpoClip, Cispo)}


@dataclass(frozen=True)
class TokenLoss:
    """What one token pays: a surrogate, a k3 KL penalty to a reference policy, and an entropy bonus.

    ℓ = importance·surrogate + kl_coef·(e^d − d − 1) − entropy_coef·H,  d = ref_logp − logp clamped to ±20 as the ratios
    are (Schulman's k3 estimator),
    importance = min(exp(sg[logp] − sampler_logp), importance_cap) where `importance_cap` is set, else 1.
    """

    surrogate: Surrogate = Reinforce()
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    importance_cap: float | None = None

    @property
    def has_regulariser(self) -> bool:
        """True when a token with advantage 0 still carries gradient."""
        return self.kl_coef != 0 or self.entropy_coef != 0

    @property
    def surrogate_parameters(self) -> tuple[float, ...]:
        return tuple(float(v) for v in astuple(self.surrogate))


@dataclass(frozen=True)
class Head:
    """A language-model head: s = scale·(hidden @ weightᵀ + bias), then softcap·tanh(s/softcap) if it has a softcap.

    weight (V,H); bias (V,) or None; softcap and scale are floats.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class PolicyLoss:
    """loss () fp32, the only differentiable part; logprobs (N,) fp32, entropy (N,) fp32, clipped (N,) bool.

    Rows that were not computed (advantage 0 and no regulariser, unless `score_all`) read NaN and False.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    clipped: Tensor
