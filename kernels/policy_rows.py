"""A chunk of logits → losses and gradient, on a back-end that has the surrogate fused and on one that has not.

Without a fused twin the chunk is read twice. The back-end scores it; PyTorch differentiates the token loss on the
vector of log-probs; then the back-end's `reinforce`, ℓ = −A·logp, writes the gradient, with A = −∂ℓ/∂logp. What the
entropy bonus gives the logits is the back-end's own in both cases.
"""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from .losses import TokenLoss
from .reference import token_losses
from .rows import HeadTail, RowResults, TokenRows


def policy_rows(
    kernel: ModuleType,
    logits_NV: Tensor,
    rows: TokenRows,
    tail: HeadTail,
    loss: TokenLoss,
    out: RowResults,
    with_gradient: bool,
) -> int:
    """Writes `out` and, with_gradient, overwrites the logits with the gradient of Σ losses. Returns as `score_rows`."""
    if loss.surrogate.name in kernel.fused_surrogates:
        return kernel.policy_rows(logits_NV, rows, tail, loss, out, with_gradient)
    bad = kernel.score_rows(logits_NV, rows, tail, out)
    if bad >= 0:
        return bad
    if with_gradient:
        slopes, losses, clipped = _differentiated(rows, loss, out)
        linear = TokenLoss(entropy_coef=loss.entropy_coef)
        kernel.policy_rows(logits_NV, replace(rows, advantages=-slopes), tail, linear, out, True)
    else:
        losses, clipped = token_losses(out.logprobs, out.entropy, rows, loss)
    out.losses.copy_(rows.weights * losses)
    out.clipped.copy_(clipped)
    return bad


def _differentiated(rows: TokenRows, loss: TokenLoss, out: RowResults) -> tuple[Tensor, Tensor, Tensor]:
    """(∂ℓ/∂logp, ℓ, clipped) at the scores in `out`."""
    # An operator runs below autograd, where enable_grad alone records nothing: the guard brings autograd back.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False), torch.enable_grad():
        logprobs_N = out.logprobs.clone().requires_grad_()
        losses, clipped = token_losses(logprobs_N, out.entropy, rows, loss)
        (slopes,) = torch.autograd.grad(losses.sum(), logprobs_N)
    return slopes, losses.detach(), clipped
