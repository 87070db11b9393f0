"""The three public operations. Each asks the chooser and calls a back-end; `reference` says what the result must be."""

from torch import Tensor

from . import native, reference
from .dispatch import choose
from .losses import Head, PolicyLoss, TokenLoss

BACKENDS = {"reference": reference, "native": native}


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, without gradient: scoring.

    hidden (N,H); head.weight (V,H); targets (N,) int64; temperature float or (N,) fp32.
    Returns (logprobs, entropy), both (N,) fp32. ValueError for a target outside [0,V) or one whose logit is −inf.
    """
    backend = BACKENDS[choose("token_logprobs", hidden.device, hidden.dtype).backend]
    return backend.token_logprobs(hidden, head, targets, temperature=temperature)


def policy_loss(
    logits: Tensor,
    targets: Tensor,
    advantages: Tensor,
    token_weights: float | Tensor,
    loss: TokenLoss,
    *,
    old_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> PolicyLoss:
    """Signed policy loss of raw logits (N,V). It may overwrite `logits` with their gradient: do not use them again.

    targets (N,) int64; advantages (N,) fp32, signed; token_weights float or (N,) fp32, they multiply; the optional
    log-probs (N,) fp32 carry no gradient. L = Σ_i w_i·ℓ_i with ℓ as in `TokenLoss`.
    """
    backend = BACKENDS[choose("policy_loss", logits.device, logits.dtype).backend]
    return backend.policy_loss(
        logits,
        targets,
        advantages,
        token_weights,
        loss,
        old_logprobs=old_logprobs,
        sampler_logprobs=sampler_logprobs,
        ref_logprobs=ref_logprobs,
        temperature=temperature,
    )


def linear_policy_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    advantages: Tensor,
    token_weights: float | Tensor,
    loss: TokenLoss,
    *,
    old_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    score_all: bool = False,
    grad_weight: Tensor | None = None,
) -> PolicyLoss:
    """Signed policy loss of hidden states (N,H) through `head`, the (N,V) logits never leaving the operation.

    Arguments as in `policy_loss`. Rows with advantage 0 are not computed when nothing else gives them gradient (their
    log-prob and entropy read NaN) unless `score_all`. grad_weight: fp32 (V,H) buffer that receives the head's gradient.
    """
    backend = BACKENDS[choose("linear_policy_loss", hidden.device, hidden.dtype).backend]
    return backend.linear_policy_loss(
        hidden,
        head,
        targets,
        advantages,
        token_weights,
        loss,
        old_logprobs=old_logprobs,
        sampler_logprobs=sampler_logprobs,
        ref_logprobs=ref_logprobs,
        temperature=temperature,
        score_all=score_all,
        grad_weight=grad_weight,
    )
