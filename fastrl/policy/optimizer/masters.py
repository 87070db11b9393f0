"""AdamW over float32 masters, the default. The weights are the masters, rounded once after each step.

Parameters in float32 are their own masters.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.base import Optimizer, adamw_settings

LEAST_GRADIENT = 2.0**-58  # (1 − β₂)·g² is a normal float32 number above it, at the usual β₂ of 0.999
LEAST_MOMENT = 2.0**-126


class MasterOptimizer(Optimizer):
    """kind `adamw` on CPU: fused AdamW over float32 masters, 12 bytes a parameter (8 for float32 weights).

    Two kinds of values become 0: gradients whose squares would be denormal, and denormal moments. Rows of the
    embedding that do not come again and improbable tokens of the head would fill both with denormals, on which a CPU's
    arithmetic is slow. Beside eps the difference reaches no weight.
    """

    def _build(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        self._least_gradient = min(LEAST_GRADIENT, config.eps * 2.0**-20)
        self.masters = {name: _master(p) for name, p in self.weights.items()}
        return torch.optim.AdamW(self.masters.values(), **adamw_settings(config), fused=True)

    def _norm(self) -> Tensor:
        for name, master in self.masters.items():
            master.grad = self.weights[name].grad
        return _whole(get_total_norm([m.grad for m in self.masters.values() if m.grad is not None]))

    def _update(self) -> None:
        for gradient in (_local(m.grad) for m in self.masters.values() if m.grad is not None):
            torch.hardshrink(gradient, self._least_gradient, out=gradient)
        self.adamw.step()
        for state in (self.adamw.state[m] for m in self.masters.values() if m in self.adamw.state):
            for moment in (_local(state["exp_avg"]), _local(state["exp_avg_sq"])):
                torch.hardshrink(moment, LEAST_MOMENT, out=moment)
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        moved = [(w, m) for w, m in zip(self.weights.values(), self.masters.values(), strict=True) if w is not m]
        if moved:
            torch._foreach_copy_(*map(list, zip(*moved, strict=True)))

    def zero_grad(self) -> None:
        super().zero_grad()
        for master in self.masters.values():
            master.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint: AdamW's states, and masters unless the weights themselves hold them whole."""
        tensors = {}
        for name, master in self.masters.items():
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if master is not self.weights[name] or isinstance(master, DTensor):  # shards are float32, the export is not
                tensors[f"master.{name}"] = master.detach()
        return tensors

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """A shard where the parameter is sharded."""
        master = self.masters.get(name.partition(".")[2])
        is_like_master = master is not None and master.shape == size
        return torch.empty_like(master, dtype=dtype) if is_like_master else super().empty_state(name, size, dtype)

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`; the weights are rewritten from the masters."""
        for name, master in self.masters.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{key}.{name}" in tensors:
                    self.adamw.state[master][key] = tensors[f"{key}.{name}"].to(master.device)
            if f"master.{name}" in tensors:
                master.copy_(tensors[f"master.{name}"])
        self._publish()


def _local(value: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    """The whole of a tensor that ranks have parts of."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_()
