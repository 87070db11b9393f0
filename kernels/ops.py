"""The three public operations. Each asks the chooser and calls a back-end; `reference` says what the result must be.

rows = TokenRows(targets, advantages, weights=1 / len(targets), old_logprobs=old_logprobs)
result = linear_policy_loss(hidden, Head(weight), rows, TokenLoss(PpoClip(0.2, 0.28)))
result.loss.backward()
"""

from types import ModuleType

import torch
from torch import Tensor

from . import chunks, library, reference
from .autograd import ConsumedLogits, FormedGradients
from .dispatch import choose, row_kernel
from .losses import Head, PolicyLoss, TokenLoss
from .rows import TokenRows, check_half


def token_logprobs(hidden: Tensor, head: Head, rows: TokenRows) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row, without gradient: scoring.

    hidden (N,H) of the dtype of head.weight (V,H); of the rows targets and temperature are read. Returns (logprobs,
    entropy), both (N,) fp32. ValueError for a target outside [0,V) or one whose logit is −inf.
    """
    backend = choose("token_logprobs", hidden.device, hidden.dtype).backend
    if backend == "reference":
        return reference.token_logprobs(hidden, head, rows)
    if torch.compiler.is_compiling():
        return library.token_logprobs(hidden, head, rows)
    out = chunks.token_logprobs(row_kernel(backend), hidden, head, rows)
    return out.logprobs, out.entropy


@torch.compiler.disable
def policy_loss(logits: Tensor, rows: TokenRows, loss: TokenLoss) -> PolicyLoss:
    """Σ_i w_i·ℓ_i of raw logits (N,V), with ℓ as in `TokenLoss`.

    Do not use the logits afterwards: their gradient may replace them, and can be taken once. torch.compile does not
    trace this operation (a graph break). ValueError as in `linear_policy_loss`.
    """
    with_gradient, vocab = torch.is_grad_enabled() and logits.requires_grad, logits.shape[1]
    if with_gradient:
        check_half(rows, logits.dtype, logits.device, vocab)
    backend = choose("policy_loss", logits.device, logits.dtype).backend
    if backend == "reference":
        return reference.policy_loss(logits, rows, loss)
    checked = rows.checked(len(logits), vocab, logits.device)
    rows.check_for(loss)
    return PolicyLoss(*ConsumedLogits.apply(logits, row_kernel(backend), checked, loss, with_gradient))


def linear_policy_loss(
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    *,
    score_all: bool = False,
    grad_weight: Tensor | None = None,
) -> PolicyLoss:
    """`policy_loss` of hidden states (N,H) through `head`, without ever holding the (N,V) logits.

    Rows whose advantage is 0 are not computed where no regulariser gives them gradient: their log-prob and entropy read
    NaN, unless score_all. Finding them makes the host wait for a GPU that has the advantages; leave those on the host.
    grad_weight: fp32 (V,H) buffer; the head's gradient is added to it here, in the forward, and the loss must then be
    differentiated with an upstream gradient of 1.
    ValueError for shapes or dtypes that do not fit, a column that the loss needs and `rows` lacks, a target outside
    [0,V) or whose logit is −inf, and float16 gradients that would vanish. On CUDA the last three are assertions on the
    device, and a log-prob of −inf.
    """
    wanted = chunks.Wanted.of(hidden, head, grad_weight)
    if wanted.any:
        check_half(rows, hidden.dtype, hidden.device, head.weight.shape[0])
    backend = choose("linear_policy_loss", hidden.device, hidden.dtype).backend
    if backend == "reference":
        return reference.linear_policy_loss(hidden, head, rows, loss, score_all=score_all, grad_weight=grad_weight)
    if torch.compiler.is_compiling() and grad_weight is None:
        return library.linear_policy_loss(hidden, head, rows, loss, wanted, score_all)
    return _untraced(row_kernel(backend), hidden, head, rows, loss, wanted, score_all)


@torch.compiler.disable
def _untraced(
    kernel: ModuleType,
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    wanted: chunks.Wanted,
    score_all: bool,
) -> PolicyLoss:
    def run() -> chunks.LinearResult:
        return chunks.linear_policy_loss(kernel, hidden, head, rows, loss, wanted, score_all=score_all)

    into_buffer = wanted.into is not None
    weight = None if into_buffer else head.weight
    return PolicyLoss(*FormedGradients.apply(hidden, weight, head.bias, kernel, run, into_buffer))
