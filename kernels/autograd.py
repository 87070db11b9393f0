"""The operations that write into the caller's memory: autograd functions, which torch.compile does not trace."""

import torch
from torch.autograd.function import once_differentiable

from .chunks import check_possible
from .policy_rows import policy_rows
from .rows import HeadTail, RowResults


class IntoGivenBuffer(torch.autograd.Function):
    """linear_policy_loss with grad_weight: the forward has added the head's gradient, so the upstream must be 1."""

    @staticmethod
    def forward(ctx, hidden, bias, run):
        result = run()
        ctx.save_for_backward(*(g for g in (result.grad_hidden, result.grad_bias) if g is not None))
        ctx.wants = (result.grad_hidden is not None, result.grad_bias is not None)
        out = result.rows
        ctx.mark_non_differentiable(out.logprobs, out.entropy, out.clipped)
        ctx.set_materialize_grads(False)
        return result.loss, out.logprobs, out.entropy, out.clipped

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return None, None, None
        message = (
            "with grad_weight the head's gradient is already added: scale by the rows' weights, not after the loss"
        )
        torch._assert_async(upstream == 1, message)
        grads = iter(ctx.saved_tensors)
        return *(next(grads) if wanted else None for wanted in ctx.wants), None


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
