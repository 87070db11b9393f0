"""AdamW over float32 masters: gradients accumulate in float32, then the weights get one rounded copy of the masters.

For float32 models the parameters are their own masters. Nothing here is a copy when it need not be.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from fastrl.config import OptimizerConfig


class MasterOptimizer:
    """`step()` clips, updates the masters and writes the weights in place; a non-finite gradient skips the update."""

    def __init__(self, module: nn.Module, config: OptimizerConfig, num_steps: int):
        self.weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = {name: _master(p) for name, p in self.weights.items()}
        for parameter in self.weights.values():
            parameter.grad_dtype = torch.float32
        self.max_grad_norm = config.max_grad_norm
        self.adamw = torch.optim.AdamW(
            self.masters.values(),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        scheduler = get_scheduler(schedule, self.adamw, config.warmup_steps, num_steps)
        self._lr, self._num_warmup, self._factor = config.lr, config.warmup_steps, scheduler.lr_lambdas[0]
        self.start_step(1)

    @property
    def lr(self) -> float:
        return self.adamw.param_groups[0]["lr"]

    def start_step(self, step: int) -> None:
        """Set the learning rate of training step `step` (from 1): a function of the step, so there is no state to save.

        Warm-up rises from lr/warmup_steps at step 1 to lr.
        """
        self.adamw.param_groups[0]["lr"] = self._lr * self._factor(step if step <= self._num_warmup else step - 1)

    def step(self) -> tuple[float, bool]:
        """(gradient norm before clipping, whether the weights moved). Gradients are cleared either way."""
        for name, master in self.masters.items():
            master.grad = self.weights[name].grad
        limit = self.max_grad_norm or math.inf
        norm = _whole(torch.nn.utils.clip_grad_norm_(self.masters.values(), limit)).item()
        is_finite = math.isfinite(norm)
        if is_finite:
            self.adamw.step()
            self._publish()
        self.zero_grad()
        return norm, is_finite

    @torch.no_grad()
    def _publish(self) -> None:
        moved = [(w, m) for w, m in zip(self.weights.values(), self.masters.values(), strict=True) if w is not m]
        if moved:
            torch._foreach_copy_(*map(list, zip(*moved, strict=True)))

    def zero_grad(self) -> None:
        for name in self.weights:
            self.weights[name].grad = self.masters[name].grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint: AdamW's state by parameter, and masters, but of whole float32 weights."""
        tensors = {}
        for name, master in self.masters.items():
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if master is not self.weights[name] or isinstance(master, DTensor):  # shards are float32, the export is not
                tensors[f"master.{name}"] = master.detach()
        return tensors

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where a checkpoint's tensor `name` of this (whole) size is to be read into: shards for sharded parameters."""
        master = self.masters.get(name.partition(".")[2])
        is_like_master = master is not None and master.shape == size
        return torch.empty_like(master, dtype=dtype) if is_like_master else torch.empty(size, dtype=dtype)

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


def _whole(value: Tensor) -> Tensor:
    """A value that every rank has a part of, on every rank."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_()
