"""RMSNorm for bfloat16 and float16 that keeps its input for the backward, and no float32 copy of it.

transformers computes y = w · round(x · r) with r = 1/√(mean x² + ε) in float32. Autograd keeps x in float32 and
round(x · r): 6 bytes a value. Here x itself and r are kept, 2 bytes, and the backward forms both from them. Forward and
gradients are those of transformers bit for bit on CPU. Source of the formula: Zhang and Sennrich, arXiv:1910.07467.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _FromInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        wide = x.float()
        grad_weight = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * (wide * scale).to(x.dtype)).sum_to_size(weight.shape)
        if ctx.needs_input_grad[0]:
            inner = (grad * weight).float()
            grad_square = -0.5 * (inner * wide).sum(-1, keepdim=True) * scale.pow(3) / x.shape[-1]
            grad_x = (inner.mul_(scale) + wide.mul_(2).mul_(grad_square)).to(x.dtype)
        return grad_x, grad_weight, None


class InputKeepingRMSNorm(nn.Module):
    """Has the attributes of transformers' norms: `weight`, `variance_epsilon`."""

    def forward(self, x: Tensor) -> Tensor:
        return _FromInput.apply(x, self.weight, self.variance_epsilon)


def keep_norm_inputs(model: nn.Module) -> int:
    """Turn each RMSNorm of two-byte weights into one that keeps its input; returns their number.

    A norm of another formula stays as it is: a comparison on a few numbers tells.
    """
    found = [module for module in model.modules() if _is_replaceable(module)]
    for module in found:
        module.__class__ = InputKeepingRMSNorm
    return len(found)


def _is_replaceable(module: nn.Module) -> bool:
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor) or eps is None:
        return False
    return weight.dtype in (torch.bfloat16, torch.float16) and _agrees(type(module), len(weight), eps, weight.dtype)


@cache
@torch.no_grad()
def _agrees(kind: type[nn.Module], size: int, eps: float, dtype: torch.dtype) -> bool:
    """Whether a norm of this class computes the formula, on CPU. One that is built otherwise does not."""
    with torch.device("cpu"):
        try:
            norm = kind(size, eps).to(dtype)
        except TypeError:
            return False
        ramp = torch.arange(3 * size, dtype=torch.float32).view(3, size)
        norm.weight.copy_(torch.cos(ramp[0]) + 1.5)
        x = (torch.sin(ramp) * torch.tensor([[1e-3], [1.0], [50.0]])).to(dtype)
        return torch.equal(norm(x), _FromInput.apply(x, norm.weight, eps))
