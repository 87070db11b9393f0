"""LayerNorm on CPU for bfloat16 and float16, with gradients of weight and bias that are summed in float32.

ATen's CPU kernel adds the gradients of the T rows one by one in the input's dtype. In bfloat16 their sum is then off
by about 0.001·√T of itself: 10 % for the 8192 rows of a pack on one thread. CUDA's kernel sums in float32, and RMSNorm
is made of operations that do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Float32Sums(torch.autograd.Function):
    """F.layer_norm's forward to the bit, with what that keeps. The backward is computed in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.LayerNorm, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.layer = layer
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, eps = ctx.layer.normalized_shape, ctx.layer.eps
        x, weight, bias = (None if t is None else t.float() for t in ctx.saved_tensors)
        _, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        sums = torch.ops.aten.native_layer_norm_backward(grad.float(), x, shape, mean, rstd, weight, bias, needed)
        return sums[0], None, sums[1], sums[2]


class Float32SumLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        return _Float32Sums.apply(x, self, self.weight, self.bias)


def sum_layer_norms_in_float32(model: nn.Module) -> None:
    """Turn each nn.LayerNorm into a Float32SumLayerNorm in place. Parameters, names and forwards do not change."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = Float32SumLayerNorm
