"""AdamW over float32 masters on a GPU: one read of the gradients for their norm, one fused pass, one for the weights.

The fused kernel divides gradients by `grad_scale` and does nothing where `found_inf` is 1 (torch made both for loss
scaling): the first is what clipping divides by, the second says that the norm is not finite. Both stay on the device,
so the host reads the norm once, when the step is queued already. Bytes a parameter, where clipping first took 46:

    norm: gradients read    4
    AdamW: masters, gradients and moments read and written    32
    weights from masters    4 + 2

The kernel writes the divided gradients back, which nobody reads: 4 of these 42 bytes.
"""

import torch
from torch import Tensor

from fastrl.policy.optimizer.masters import MasterOptimizer


class OnePassOptimizer(MasterOptimizer):
    """kind `adamw` on a GPU. Clipped gradients differ in the last bit from those that are multiplied first."""

    def _move(self, limit: float) -> float:
        norm = self._norm()
        self.adamw.grad_scale, self.adamw.found_inf = divisor(norm, limit), (~norm.isfinite()).float()
        self._update()
        return norm.item()

    def _update(self) -> None:
        self.adamw.step()
        self._publish()


def divisor(norm: Tensor, limit: float) -> Tensor:
    """() What gradients of `norm` are divided by so that it is at most `limit`, as torch clips: at least 1."""
    return torch.clamp((norm + 1e-6) / limit, min=1.0)
