"""The specification of the three operations, in plain PyTorch with autograd; every other back-end is tested against it.

Raw logits s, temperature τ, z = s/τ, p = softmax(z), sampled token y:
    logp = z_y − logsumexp(z)        H = −Σ_j p_j log p_j  (terms with p_j = 0 are 0)        L = Σ_i w_i·ℓ_i
Statistics are in fp32 (fp64 for fp64 input). It materialises the logits: simple first, memory later.
"""

import torch
from torch import Tensor

from .losses import MAX_LOG_RATIO, Head, PolicyLoss, TokenLoss

NEGLIGIBLE = 2.0**-64  # a whole vocabulary of such probabilities changes nothing: their gradient is written as 0
NEGLIGIBLE_NATS = -44.3614195558365  # its logarithm
SMALLEST = 2.0**-110  # of a gradient


def check_rows(targets: Tensor, num_rows: int, vocab: int) -> None:
    """ValueError for targets of a wrong shape or dtype, or outside [0, vocab). CUDA values are not read (no sync)."""
    if targets.shape != (num_rows,) or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 of shape ({num_rows},), got {targets.dtype} {tuple(targets.shape)}")
    if num_rows and not targets.is_cuda:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= vocab:
            raise ValueError(f"target {low if low < 0 else high} is outside the vocabulary [0, {vocab})")


def head_logits(hidden_NH: Tensor, head: Head) -> Tensor:
    """(N,V) raw logits in the dtype of `hidden_NH`."""
    logits = hidden_NH @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def _as_column(temperature: float | Tensor) -> float | Tensor:
    return temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature


class _NegligibleCut(torch.autograd.Function):
    """The same (N,V) values. In the backward 0 for what has a negligible probability, the targets aside, and for what
    is so small that products with it would be denormal."""

    @staticmethod
    def forward(ctx, scaled_NV: Tensor, targets_N: Tensor) -> Tensor:
        least_N1 = scaled_NV.amax(dim=-1, keepdim=True) + NEGLIGIBLE_NATS
        ctx.save_for_backward((scaled_NV < least_N1).scatter(-1, targets_N.unsqueeze(-1), False))
        return scaled_NV.view_as(scaled_NV)

    @staticmethod
    def backward(ctx, gradient_NV: Tensor) -> tuple[Tensor, None]:
        (is_negligible_NV,) = ctx.saved_tensors
        return gradient_NV.masked_fill(is_negligible_NV | (gradient_NV.abs() < SMALLEST), 0.0), None


def logits_statistics(logits_NV: Tensor, targets_N: Tensor, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy), both (N,) fp32 (fp64 for fp64 logits). ValueError where the target's own logit is −inf."""
    check_rows(targets_N, *logits_NV.shape)
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    scaled_NV = _NegligibleCut.apply(logits_NV.to(dtype) / _as_column(temperature), targets_N)
    logprobs_NV = torch.log_softmax(scaled_NV, dim=-1)
    logprobs = logprobs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    if not logprobs.is_cuda and torch.isneginf(logprobs).any():
        row = int(torch.isneginf(logprobs).nonzero()[0])
        raise ValueError(f"row {row}: the logit of target {int(targets_N[row])} is -inf, it cannot have been sampled")
    finite_NV = logprobs_NV.masked_fill(torch.isneginf(logprobs_NV), 0.0)
    return logprobs, -(logprobs_NV.exp() * finite_NV).sum(-1)


def token_losses(
    logprobs_N: Tensor,
    entropy_N: Tensor,
    advantages_N: Tensor,
    loss: TokenLoss,
    *,
    old_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(ℓ, clipped), both (N,), before token weights. ValueError where a coefficient needs log-probs not given."""
    value, clipped = loss.surrogate(logprobs_N, old_logprobs, advantages_N)
    if loss.importance_cap is not None:
        if sampler_logprobs is None:
            raise ValueError("importance_cap needs sampler_logprobs")
        value = value * (logprobs_N.detach() - sampler_logprobs).exp().clamp(max=loss.importance_cap)
    if loss.kl_coef:
        if ref_logprobs is None:
            raise ValueError("kl_coef needs ref_logprobs")
        log_ratio = (ref_logprobs - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        value = value + loss.kl_coef * (log_ratio.exp() - log_ratio - 1)
    if loss.entropy_coef:
        value = value - loss.entropy_coef * entropy_N
    return value, clipped


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
    """Loss of raw logits (N,V); see `kernels.policy_loss`. This one does not consume its logits."""
    logprobs, entropy = logits_statistics(logits, targets, temperature)
    value, clipped = token_losses(
        logprobs,
        entropy,
        advantages,
        loss,
        old_logprobs=old_logprobs,
        sampler_logprobs=sampler_logprobs,
        ref_logprobs=ref_logprobs,
    )
    return PolicyLoss((token_weights * value).sum(), logprobs.detach(), entropy.detach(), clipped)


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) of `targets`, no gradient; see `kernels.token_logprobs`."""
    with torch.no_grad():
        return logits_statistics(head_logits(hidden, head), targets, temperature)


def _take(value: float | Tensor | None, rows: Tensor) -> float | Tensor | None:
    return value[rows] if isinstance(value, Tensor) else value


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
    """Loss of hidden states (N,H) through `head`; see `kernels.linear_policy_loss`."""
    check_rows(targets, hidden.shape[0], head.weight.shape[0])
    if grad_weight is not None:
        raise ValueError("the reference leaves the head's gradient to autograd: grad_weight must be None")
    is_active = torch.ones_like(targets, dtype=torch.bool)
    if not (loss.has_regulariser or score_all):
        is_active = advantages != 0
    rows = is_active.nonzero().squeeze(-1)
    part = policy_loss(
        head_logits(hidden[rows], head),
        targets[rows],
        advantages[rows],
        _take(token_weights, rows),
        loss,
        old_logprobs=_take(old_logprobs, rows),
        sampler_logprobs=_take(sampler_logprobs, rows),
        ref_logprobs=_take(ref_logprobs, rows),
        temperature=_take(temperature, rows),
    )
    logprobs = part.logprobs.new_full(targets.shape, float("nan")).index_put((rows,), part.logprobs)
    entropy = part.entropy.new_full(targets.shape, float("nan")).index_put((rows,), part.entropy)
    clipped = torch.zeros_like(is_active).index_put((rows,), part.clipped)
    return PolicyLoss(part.loss, logprobs, entropy, clipped)
