"""The specification of the three operations, in plain PyTorch with autograd; every other back-end is tested against it.

Raw logits s, temperature τ, z = s/τ, p = softmax(z), sampled token y:
    logp = z_y − logsumexp(z)        H = −Σ_j p_j log p_j  (terms with p_j = 0 are 0)        L = Σ_i w_i·ℓ_i
Statistics are in fp32 (fp64 for fp64 input). It materialises the logits: simple first, memory later.
"""

import torch
from torch import Tensor

from .losses import Head, PolicyLoss, TokenLoss
from .rows import TokenRows, check_targets
from .surrogates import MAX_LOG_RATIO

NEGLIGIBLE = 2.0**-64  # a whole vocabulary of such probabilities changes nothing: their gradient is written as 0
NEGLIGIBLE_NATS = -44.3614195558365  # its logarithm
SMALLEST = 2.0**-110  # of a gradient


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


class _NegligibleCut(torch.autograd.Function):
    """Returns its input. The backward writes 0 for tokens of negligible probability other than the target, and for
    gradients so small that products with them would be denormal."""

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
    check_targets(targets_N, *logits_NV.shape)
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    divisor = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    scaled_NV = _NegligibleCut.apply(logits_NV.to(dtype) / divisor, targets_N)
    logprobs_NV = torch.log_softmax(scaled_NV, dim=-1)
    logprobs = logprobs_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    if not logprobs.is_cuda and torch.isneginf(logprobs).any():
        row = int(torch.isneginf(logprobs).nonzero()[0])
        raise ValueError(f"row {row}: the logit of target {int(targets_N[row])} is -inf, it cannot have been sampled")
    finite_NV = logprobs_NV.masked_fill(torch.isneginf(logprobs_NV), 0.0)
    return logprobs, -(logprobs_NV.exp() * finite_NV).sum(-1)


def token_losses(logprobs_N: Tensor, entropy_N: Tensor, rows: TokenRows, loss: TokenLoss) -> tuple[Tensor, Tensor]:
    """(ℓ, clipped), both (N,), before token weights. ValueError where the loss needs a column that `rows` lacks."""
    rows.check_for(loss)
    value, clipped = loss.surrogate(logprobs_N, rows.old_logprobs, rows.advantages)
    if loss.importance_cap is not None:
        value = value * (logprobs_N.detach() - rows.sampler_logprobs).exp().clamp(max=loss.importance_cap)
    if loss.kl_coef:
        log_ratio = (rows.ref_logprobs - logprobs_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        value = value + loss.kl_coef * (log_ratio.exp() - log_ratio - 1)
    if loss.entropy_coef:
        value = value - loss.entropy_coef * entropy_N
    return value, clipped


def policy_loss(logits: Tensor, rows: TokenRows, loss: TokenLoss) -> PolicyLoss:
    """Loss of raw logits (N,V); see `ops.policy_loss`. This one does not consume its logits."""
    rows = rows.to(logits.device)
    logprobs, entropy = logits_statistics(logits, rows.targets, rows.temperature)
    value, clipped = token_losses(logprobs, entropy, rows, loss)
    return PolicyLoss((rows.weights * value).sum(), logprobs.detach(), entropy.detach(), clipped)


def token_logprobs(hidden: Tensor, head: Head, rows: TokenRows) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) of the targets, no gradient; see `ops.token_logprobs`."""
    rows = rows.to(hidden.device)
    with torch.no_grad():
        return logits_statistics(head_logits(hidden, head), rows.targets, rows.temperature)


def linear_policy_loss(
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    *,
    score_all: bool = False,
    grad_weight: Tensor | None = None,
) -> PolicyLoss:
    """Loss of hidden states (N,H) through `head`; see `ops.linear_policy_loss`."""
    if grad_weight is not None:
        raise ValueError("the reference leaves the head's gradient to autograd: grad_weight must be None")
    check_targets(rows.targets, hidden.shape[0], head.weight.shape[0])
    rows = rows.to(hidden.device)
    rows.check_for(loss)
    is_active = torch.ones_like(rows.targets, dtype=torch.bool)
    if not (loss.has_regulariser or score_all):
        is_active = rows.advantages != 0
    index = is_active.nonzero().squeeze(-1)
    part = policy_loss(head_logits(hidden[index], head), rows.take(index), loss)
    logprobs, entropy = (
        x.new_full(is_active.shape, float("nan")).index_put((index,), x) for x in (part.logprobs, part.entropy)
    )
    clipped = torch.zeros_like(is_active).index_put((index,), part.clipped)
    return PolicyLoss(part.loss, logprobs, entropy, clipped)
