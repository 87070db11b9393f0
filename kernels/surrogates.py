"""Surrogates: how the loss of one token depends on its log-probability. Importing this file does not import torch.

ρ = exp(logp − old), with the exponent clamped to ±20. Without old log-probs the policy has not moved since sampling:
ρ has the value 1 and the gradient of a ratio. A is the token's signed advantage.

    Reinforce   ℓ = −A·logp                                              Williams 1992
    PpoClip     ℓ = max(−A·ρ, −A·clip(ρ, 1−low, 1+high))                 Schulman et al. 2017, arXiv:1707.06347, eq. 7
                with `dual`: for A < 0 additionally ℓ ≤ −A·dual          Ye et al. 2020, arXiv:1912.09729, eq. 5
    Cispo       ℓ = −sg[min(ρ, cap)]·A·logp                              MiniMax-M1, arXiv:2506.13585, eq. 4, upper side

A new surrogate is a class like these and its name in `SURROGATES`. It then works on every back-end: one
that has no fused twin of it scores the logits, differentiates the class on the vector of log-probs, and reads the
logits a second time to form their gradient (`policy_rows`). A twin (csrc/token_loss.h, triton_losses) saves that.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from annotated_types import Ge, Gt, Lt

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0


class Surrogate(Protocol):
    """`surrogate(logprobs, old_logprobs, advantages)` returns (loss, clipped): all (N,), old_logprobs perhaps None.

    loss is differentiable in logprobs, row by row, and linear in the size of the advantage: k·A gives k times the loss
    for k ≥ 0. clipped (bool) marks the rows whose gradient a bound has cut. An implementation is a frozen dataclass
    whose fields are floats.
    """

    name: ClassVar[str]

    def __call__(
        self, logprobs: "Tensor", old_logprobs: "Tensor | None", advantages: "Tensor"
    ) -> "tuple[Tensor, Tensor]": ...


def _ratio(logprobs: "Tensor", old_logprobs: "Tensor | None") -> "Tensor":
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    return (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True)
class Reinforce:
    """−A·logp: the plain score-function estimator. It never clips and ignores the old policy."""

    name: ClassVar[str] = "reinforce"

    def __call__(self, logprobs, old_logprobs, advantages):
        return -advantages * logprobs, logprobs.new_zeros(logprobs.shape).bool()


@dataclass(frozen=True)
class PpoClip:
    """PPO: the ratio to the old policy, without gradient where it has moved far enough already."""

    name: ClassVar[str] = "ppo_clip"
    low: Annotated[float, Ge(0), Lt(1)] = 0.2
    """A ratio below 1 − low stops the gradient of a negative advantage."""
    high: Annotated[float, Ge(0)] = 0.2
    """A ratio above 1 + high stops the gradient of a positive advantage."""
    dual: Annotated[float, Ge(0)] = 0.0
    """The loss of a negative advantage A is at most −A·dual (dual clip); above 1, or 0: no bound."""

    def __post_init__(self) -> None:
        if not (0 <= self.low < 1 and self.high >= 0):
            raise ValueError(f"ppo_clip needs 0 <= low < 1 and high >= 0, got low={self.low}, high={self.high}")
        if self.dual and self.dual <= 1:
            raise ValueError(f"ppo_clip dual must be above 1, or 0 for none, got {self.dual}")

    def __call__(self, logprobs, old_logprobs, advantages):
        ratio = _ratio(logprobs, old_logprobs)
        loss = (-advantages * ratio).maximum(-advantages * ratio.clamp(1 - self.low, 1 + self.high))
        clipped = ((advantages > 0) & (ratio > 1 + self.high)) | ((advantages < 0) & (ratio < 1 - self.low))
        if self.dual:
            bound = -advantages * self.dual
            over = (advantages < 0) & (loss > bound)
            loss, clipped = bound.where(over, loss), clipped | over
        return loss, clipped


@dataclass(frozen=True)
class Cispo:
    """−A·logp times a capped ratio that carries no gradient itself: no token ever loses its gradient."""

    name: ClassVar[str] = "cispo"
    cap: Annotated[float, Gt(0)] = 5.0
    """The largest weight that a ratio gives a token."""

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise ValueError(f"cispo cap must be positive, got {self.cap}")

    def __call__(self, logprobs, old_logprobs, advantages):
        ratio = _ratio(logprobs, old_logprobs).detach()
        return -ratio.clamp(max=self.cap) * advantages * logprobs, (ratio > self.cap) & (advantages != 0)


SURROGATES: dict[str, type[Surrogate]] = {
    surrogate.name: surrogate
    for surrogate in (
        Reinforce,
        PpoClip,
        Cispo,
    )
}
