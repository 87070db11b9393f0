"""AdamW in place on a module's weights: learning rate by step, clipping, non-finite gradients skipped.

`MasterOptimizer` is the default: gradients accumulate in float32, then the weights get one rounded copy of float32
masters. For float32 models the parameters are their own masters; nothing is a copy when it need not be. The kinds
without masters are in `rounding`.
"""

import importlib.util
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from fastrl.config import OptimizerConfig

LEAST_GRADIENT = 2.0**-58  # (1 − β₂)·g² is a normal float32 number above it, at the usual β₂ of 0.999
LEAST_MOMENT = 2.0**-126


class Optimizer(ABC):
    """What every kind shares. The weights are written in place: whoever holds their storage sees the update."""

    def __init__(self, module: nn.Module, config: OptimizerConfig, num_steps: int):
        self.weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        for parameter in self.weights.values():
            parameter.grad_dtype = gradient_dtype(parameter, config)
        self.max_grad_norm = config.max_grad_norm
        self.adamw = self._build(config)
        schedule = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        scheduler = get_scheduler(schedule, self.adamw, config.warmup_steps, num_steps)
        self._lr, self._num_warmup, self._factor = config.lr, config.warmup_steps, scheduler.lr_lambdas[0]
        self.start_step(1)

    @abstractmethod
    def _build(self, config: OptimizerConfig) -> torch.optim.Optimizer: ...

    @abstractmethod
    def _clip(self, limit: float) -> float:
        """Scale the gradients so that their norm is at most `limit`; the norm before."""

    @abstractmethod
    def _update(self) -> None: ...

    @abstractmethod
    def state_tensors(self) -> dict[str, Tensor]:
        """Flat plain tensors for a checkpoint, beside the weights."""

    @abstractmethod
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`."""

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where a checkpoint's tensor `name` of this (whole) size is to be read into."""
        return torch.empty(size, dtype=dtype)

    def start_step(self, step: int) -> None:
        """Set the learning rate of training step `step` (from 1): a function of the step, so there is no state to save.

        Warm-up rises from lr/warmup_steps at step 1 to lr.
        """
        self.lr = self._lr * self._factor(step if step <= self._num_warmup else step - 1)
        group = self.adamw.param_groups[0]
        group["lr"] = torch.tensor(self.lr) if isinstance(group["lr"], Tensor) else self.lr

    def step(self) -> tuple[float, bool]:
        """(gradient norm before clipping, whether the weights moved). Gradients are cleared either way.

        A gradient that is not finite moves nothing.
        """
        norm = self._clip(self.max_grad_norm or math.inf)
        is_finite = math.isfinite(norm)
        if is_finite:
            self._update()
        self.zero_grad()
        return norm, is_finite

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


class MasterOptimizer(Optimizer):
    """kind `adamw`: fused AdamW over float32 masters, 12 bytes a parameter (8 for float32 weights).

    On CPU, gradients whose squares would be denormal and denormal moments become 0: rows of the embedding that are not
    seen again and a head's improbable tokens would fill both with them, and arithmetic on them is slow. Beside eps no
    weight can tell.
    """

    def _build(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        self._least_gradient = min(LEAST_GRADIENT, config.eps * 2.0**-20)
        self.masters = {name: _master(p) for name, p in self.weights.items()}
        return torch.optim.AdamW(self.masters.values(), **adamw_settings(config), fused=True)

    def _clip(self, limit: float) -> float:
        for name, master in self.masters.items():
            master.grad = self.weights[name].grad
        return _whole(torch.nn.utils.clip_grad_norm_(self.masters.values(), limit)).item()

    def _update(self) -> None:
        on_cpu = [master for master in self.masters.values() if master.device.type == "cpu"]
        for gradient in (_local(m.grad) for m in on_cpu if m.grad is not None):
            torch.hardshrink(gradient, self._least_gradient, out=gradient)
        self.adamw.step()
        for state in (self.adamw.state[m] for m in on_cpu if m in self.adamw.state):
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
        """Flat tensors for a checkpoint: AdamW's state by parameter, and masters, but of whole float32 weights."""
        tensors = {}
        for name, master in self.masters.items():
            tensors |= {f"{key}.{name}": value for key, value in self.adamw.state[master].items()}
            if master is not self.weights[name] or isinstance(master, DTensor):  # shards are float32, the export is not
                tensors[f"master.{name}"] = master.detach()
        return tensors

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """As every kind's, and shards for the states of sharded parameters."""
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
    """This rank's part."""
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    """A value that every rank has a part of, on every rank."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def build_optimizer(module: nn.Module, config: OptimizerConfig, num_steps: int) -> Optimizer:
    """The optimizer that `config.kind` names."""
    if config.kind == "adamw":
        return MasterOptimizer(module, config, num_steps)
    from fastrl.policy.rounding import RoundingOptimizer

    return RoundingOptimizer(module, config, num_steps)


def adamw_settings(config: OptimizerConfig) -> dict[str, float | tuple[float, float]]:
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }


def gradient_dtype(weight: Tensor, config: OptimizerConfig) -> torch.dtype:
    """What the gradients of a weight accumulate in: never less than the weight's own dtype."""
    return torch.promote_types(weight.dtype, getattr(torch, config.grad_dtype))


def check_weights(kind: str, dtype: torch.dtype) -> None:
    """ValueError for a kind that does not go with weights of `dtype`."""
    if kind != "adamw" and dtype != torch.bfloat16:
        raise ValueError(
            f"optimizer.kind = '{kind}' rounds bfloat16 weights at random, and the weights would be {dtype}: set "
            "model.dtype = 'bfloat16', or optimizer.kind = 'adamw'"
        )


def check_optimizer(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError for a kind that does not go with the weights or cannot run here; compiles one small step to know."""
    check_weights(kind, dtype)
    if kind == "adamw":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f"optimizer.kind = '{kind}', but torchao is not installed: pip install 'fastrl[low-memory]'")
    from fastrl.policy.rounding import compiler_problem

    if problem := compiler_problem(device):
        raise ValueError(
            f"optimizer.kind = '{kind}' compiles its step, which fails here ({problem}): install a C++ compiler (and "
            "Triton for CUDA), or use optimizer.kind = 'adamw'"
        )


def _master(parameter: nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_()
