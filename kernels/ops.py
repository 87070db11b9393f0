"""The three public operations. Each asks the chooser and calls a back-end; `reference` says what the result must be."""

import torch
from torch import Tensor

from . import chunks, library, reference
from .autograd import ConsumedLogits, IntoGivenBuffer
from .dispatch import choose, row_kernel
from .losses import Head, PolicyLoss, TokenLoss
from .rows import check_coefficients, check_half, token_rows


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, without gradient: scoring.

    hidden (N,H); head.weight (V,H); targets (N,) int64; temperature float or (N,) fp32.
    Returns (logprobs, entropy), both (N,) fp32. ValueError for a target outside [0,V) or one whose logit is −inf.
    """
    if choose("token_logprobs", hidden.device, hidden.dtype).backend == "reference":
        return reference.token_logprobs(hidden, head, targets, temperature=temperature)
    return library.token_logprobs(hidden, head, targets, temperature=temperature)


@torch.compiler.disable
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
    log-probs (N,) fp32 carry no gradient. L = Σ_i w_i·ℓ_i with ℓ as in `TokenLoss`. A graph break under torch.compile.
    """
    columns = {"old_logprobs": old_logprobs, "sampler_logprobs": sampler_logprobs, "ref_logprobs": ref_logprobs}
    if torch.is_grad_enabled() and logits.requires_grad:
        check_half(logits.dtype, token_weights, advantages, logits.shape[1])
    backend = choose("policy_loss", logits.device, logits.dtype).backend
    if backend == "reference":
        return reference.policy_loss(
            logits, targets, advantages, token_weights, loss, temperature=temperature, **columns
        )
    num_rows, vocab = logits.shape
    rows = token_rows(
        targets, vocab, num_rows, logits.device, temperature, advantages=advantages, weights=token_weights, **columns
    )
    check_coefficients(loss, rows)
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    return PolicyLoss(*ConsumedLogits.apply(logits, row_kernel(backend), rows, loss, with_gradient))


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
    log-prob and entropy read NaN) unless `score_all`. advantages may stay on the host beside hidden states on a GPU:
    finding the rows with a gradient then waits for nothing. grad_weight: fp32 (V,H) buffer that receives the head's
    gradient here, in the forward: the loss must then be differentiated with an upstream gradient of 1.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad):
        check_half(hidden.dtype, token_weights, advantages, head.weight.shape[0])
    backend = choose("linear_policy_loss", hidden.device, hidden.dtype).backend
    columns = {"old_logprobs": old_logprobs, "sampler_logprobs": sampler_logprobs, "ref_logprobs": ref_logprobs}
    if backend == "reference":
        return reference.linear_policy_loss(
            hidden, head, targets, advantages, token_weights, loss,
            temperature=temperature, score_all=score_all, grad_weight=grad_weight, **columns,
        )  # fmt: skip
    if grad_weight is not None:
        return _into_given_buffer(
            hidden, head, targets, advantages, token_weights, loss,
            backend=backend, temperature=temperature, score_all=score_all, grad_weight=grad_weight, **columns,
        )  # fmt: skip
    return library.linear_policy_loss(
        hidden, head, targets, advantages, token_weights, loss, temperature=temperature, score_all=score_all, **columns
    )


@torch.compiler.disable
def _into_given_buffer(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    advantages: Tensor,
    token_weights: float | Tensor,
    loss: TokenLoss,
    *,
    backend: str,
    temperature: float | Tensor,
    score_all: bool,
    grad_weight: Tensor,
    **columns: Tensor | None,
) -> PolicyLoss:
    vocab, num_rows, has_grad = head.weight.shape[0], hidden.shape[0], torch.is_grad_enabled()
    rows = token_rows(
        targets, vocab, num_rows, hidden.device, temperature, advantages=advantages, weights=token_weights, **columns
    )
    has_bias_grad = has_grad and head.bias is not None and head.bias.requires_grad
    wanted = chunks.Wanted(has_grad and hidden.requires_grad, has_grad, has_bias_grad)

    def run() -> chunks.LinearResult:
        return chunks.linear_policy_loss(
            row_kernel(backend), hidden, head, rows, loss, wanted,
            score_all=score_all, grad_weight=grad_weight, host_advantages=advantages,
        )  # fmt: skip

    return PolicyLoss(*IntoGivenBuffer.apply(hidden, head.bias, run))
