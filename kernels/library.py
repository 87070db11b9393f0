"""torch.library operators over the chunk driver: functional, so that torch.compile keeps them whole.

Only traced code calls them (`ops`): passing 21 arguments through a schema takes the host longer than all else.

    fastrl::token_logprobs       (logprobs, entropy)
    fastrl::linear_policy_loss   (loss, logprobs, entropy, clipped, dX, dW, db): gradients are outputs, for the backward

A schema holds tensors and numbers only: head, rows and loss cross as their fields, in order; a surrogate crosses as its
registered name and floats, a missing gradient as an empty tensor. The back-end is chosen when the operator runs.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import chunks
from .dispatch import choose, row_kernel
from .losses import Head, PolicyLoss, TokenLoss
from .rows import TokenRows, as_column
from .surrogates import SURROGATES


def _kernel(operation: str, tensor: Tensor) -> ModuleType:
    return row_kernel(choose(operation, tensor.device, tensor.dtype).backend)


@torch.library.custom_op("fastrl::token_logprobs", mutates_args=())
def token_logprobs_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    targets: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    head, rows = Head(weight, bias, softcap, scale), TokenRows(targets, temperature=temperature)
    out = chunks.token_logprobs(_kernel("token_logprobs", hidden), hidden, head, rows)
    return out.logprobs.clone(), out.entropy.clone()


@token_logprobs_op.register_fake
def _(hidden, weight, bias, softcap, scale, targets, temperature):
    num_rows = hidden.shape[0]
    return hidden.new_empty(num_rows, dtype=torch.float32), hidden.new_empty(num_rows, dtype=torch.float32)


@torch.library.custom_op("fastrl::linear_policy_loss", mutates_args=())
def linear_policy_loss_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
    targets: Tensor,
    advantages: Tensor | None,
    weights: Tensor,
    old_logprobs: Tensor | None,
    sampler_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    temperature: Tensor,
    surrogate: str,
    parameters: Sequence[float],
    kl_coef: float,
    entropy_coef: float,
    importance_cap: float | None,
    score_all: bool,
    wants_hidden: bool,
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    result = chunks.linear_policy_loss(
        _kernel("linear_policy_loss", hidden),
        hidden,
        Head(weight, bias, softcap, scale),
        TokenRows(targets, advantages, weights, old_logprobs, sampler_logprobs, ref_logprobs, temperature),
        TokenLoss(SURROGATES[surrogate](*parameters), kl_coef, entropy_coef, importance_cap),
        chunks.Wanted(wants_hidden, wants_weight, wants_bias),
        score_all=score_all,
    )
    out, grads = result.rows, (result.grad_hidden, result.grad_weight, result.grad_bias)
    grads = [hidden.new_empty(0) if grad is None else grad for grad in grads]
    return result.loss, out.logprobs.clone(), out.entropy.clone(), out.clipped, *grads


@linear_policy_loss_op.register_fake
def _(hidden, weight, bias, *args):
    wants_hidden, wants_weight, wants_bias = args[-3:]
    row = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return (
        hidden.new_empty((), dtype=torch.float32),
        row,
        torch.empty_like(row),
        torch.empty_like(row, dtype=torch.bool),
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if wants_hidden else hidden.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if wants_weight else hidden.new_empty(0),
        torch.empty_like(bias) if wants_bias else hidden.new_empty(0),
    )


def _keep_gradients(ctx, inputs, output) -> None:
    ctx.wants = inputs[-3:]
    ctx.num_inputs = len(inputs)
    ctx.save_for_backward(*output[4:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros the size of dW for outputs without gradient


def _hand_out_gradients(ctx, upstream, *_):
    """Each gradient times the upstream in fp32: a compiler makes one pass of it."""
    if upstream is None:
        return (None,) * ctx.num_inputs
    grads = [
        (grad.float() * upstream).to(grad.dtype) if is_wanted else None
        for grad, is_wanted in zip(ctx.saved_tensors, ctx.wants, strict=True)
    ]
    return *grads, *([None] * (ctx.num_inputs - 3))


linear_policy_loss_op.register_autograd(_hand_out_gradients, setup_context=_keep_gradients)


def _shared(rows: TokenRows, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(weights, temperature) as tensors: a number in the schema would be compiled into the graph."""
    columns = (("weights", rows.weights), ("temperature", rows.temperature))
    weights, temperature = (as_column(name, value, hidden.shape[0], hidden.device) for name, value in columns)
    return weights, temperature


def linear_policy_loss(
    hidden: Tensor, head: Head, rows: TokenRows, loss: TokenLoss, wanted: chunks.Wanted, score_all: bool
) -> PolicyLoss:
    """The operator, called with objects."""
    weights, temperature = _shared(rows, hidden)
    out = linear_policy_loss_op(
        hidden,
        head.weight,
        head.bias,
        head.softcap,
        head.scale,
        rows.targets,
        rows.advantages,
        weights,
        rows.old_logprobs,
        rows.sampler_logprobs,
        rows.ref_logprobs,
        temperature,
        loss.surrogate.name,
        loss.surrogate_parameters,
        loss.kl_coef,
        loss.entropy_coef,
        loss.importance_cap,
        score_all,
        wanted.hidden,
        wanted.weight,
        wanted.bias,
    )
    return PolicyLoss(*out[:4])


def token_logprobs(hidden: Tensor, head: Head, rows: TokenRows) -> tuple[Tensor, Tensor]:
    """The operator, called with objects."""
    bias = None if head.bias is None else head.bias.detach()
    _, temperature = _shared(rows, hidden)
    inputs = hidden.detach(), head.weight.detach(), bias, head.softcap, head.scale, rows.targets, temperature
    return token_logprobs_op(*inputs)
