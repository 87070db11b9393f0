"""What the forward has formed and the backward hands out: autograd functions, which torch.compile does not trace."""

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunks import check_possible
from .policy_rows import policy_rows
from .rows import HeadTail, RowResults


def _scaled(kernel: ModuleType, gradient: Tensor, upstream: Tensor) -> Tensor:
    """gradient·upstream, rounded once: in the gradient's own memory, unless another backward will read it again."""
    if torch._C._autograd._get_current_graph_task_keep_graph():
        gradient = gradient.clone()
    kernel.scale_(gradient, upstream)
    return gradient


class FormedGradients(torch.autograd.Function):
    """linear_policy_loss. `run` computes it. into_buffer: it has added the head's gradient where the caller wants it,
    so the upstream must be 1."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, kernel, run, into_buffer):
        result = run()
        grads, out = (result.grad_hidden, result.grad_weight, result.grad_bias), result.rows
        ctx.save_for_backward(*(g for g in grads if g is not None))
        ctx.wants, ctx.kernel, ctx.into_buffer = [g is not None for g in grads], kernel, into_buffer
        ctx.mark_non_differentiable(out.logprobs, out.entropy, out.clipped)
        ctx.set_materialize_grads(False)  # no zeros the size of dW for outputs without gradient
        return result.loss, out.logprobs, out.entropy, out.clipped

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 6
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) if is_wanted else None for is_wanted in ctx.wants]
        if ctx.into_buffer:
            message = (
                "with grad_weight the head's gradient is already added: scale by the rows' weights, not after the loss"
            )
            torch._assert_async(upstream == 1, message)
        else:
            grads = [None if grad is None else _scaled(ctx.kernel, grad, upstream) for grad in grads]
        return *grads, None, None, None


class ConsumedLogits(torch.autograd.Function):
    """policy_loss: the gradient replaces the logits in their memory, so it can be handed out once only."""

    @staticmethod
    def forward(ctx, logits, kernel, rows, loss, with_gradient):
        out = RowResults.empty(len(rows), logits.device)
        buffer = logits.detach()
        buffer = buffer if buffer.stride(-1) == 1 or buffer.shape[-1] <= 1 else buffer.contiguous()
        bad = policy_rows(kernel, buffer, rows, HeadTail(), loss, out, with_gradient)
        check_possible(bad, rows)
        if with_gradient:
            torch.autograd.graph.increment_version(logits)
            ctx.gradient, ctx.kernel = buffer, kernel
        ctx.mark_non_differentiable(out.logprobs, out.entropy, out.clipped)
        ctx.set_materialize_grads(False)
        return out.total_loss(), out.logprobs, out.entropy, out.clipped

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 5
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("policy_loss hands out its gradient once: it lies in the memory of the logits")
        ctx.kernel.scale_(gradient, upstream)
        return gradient, None, None, None, None
