"""What an operation is asked for and what it returns: the loss of a token, the model's head, the result."""

from dataclasses import astuple, dataclass, field

from torch import Tensor

from .surrogates import SURROGATES, Reinforce, Surrogate


@dataclass(frozen=True)
class TokenLoss:
    """What one token pays: a surrogate, a KL penalty to a reference policy, and an entropy bonus.

        ℓ = importance·surrogate + kl_coef·(e^d − d − 1) − entropy_coef·H

    d = ref_logp − logp, clamped to ±20 (Schulman's k3 estimator). importance = min(exp(sg[logp] − sampler_logp),
    importance_cap), or 1 where importance_cap is None. ValueError for a surrogate that is not in SURROGATES: operators
    know it by its name.
    """

    surrogate: Surrogate = field(default_factory=Reinforce)
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        cls = type(self.surrogate)
        if SURROGATES.get(cls.name) is not cls:
            raise ValueError(f"surrogate {cls.__name__} is not registered: SURROGATES[{cls.name!r}] = {cls.__name__}")

    @property
    def has_regulariser(self) -> bool:
        """True when a token with advantage 0 still carries gradient."""
        return self.kl_coef != 0 or self.entropy_coef != 0

    @property
    def surrogate_parameters(self) -> tuple[float, ...]:
        return tuple(float(v) for v in astuple(self.surrogate))


@dataclass(frozen=True)
class Head:
    """A language model's head: s = scale·(hidden @ weightᵀ + bias), then softcap·tanh(s/softcap) if it has a softcap.

    weight (V,H); bias (V,) or None; softcap and scale are floats.
    """

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class PolicyLoss:
    """loss () fp32, the only differentiable part; logprobs (N,) fp32, entropy (N,) fp32, clipped (N,) bool.

    Rows that were not computed (advantage 0 and no regulariser, unless `score_all`) read NaN, NaN and False.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    clipped: Tensor
