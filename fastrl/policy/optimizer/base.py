"""What every kind of AdamW shares: a learning rate by step, clipping, and that non-finite gradients move nothing."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from transformers import get_scheduler

from fastrl.config.schema import OptimizerConfig

CERTAINLY_BELOW = 0.999  # of the limit: nearer to it torch's own rounding decides whether there is a factor


class Optimizer(ABC):
    """Updates the trained parameters of a module in place: whoever holds their storage sees the update."""

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
    def _norm(self) -> Tensor:
        """() The norm of all gradients together, of all ranks, on their device."""

    @abstractmethod
    def _update(self) -> None:
        """Move the weights by the gradients as they are."""

    @abstractmethod
    def state_tensors(self) -> dict[str, Tensor]:
        """Flat plain tensors for a checkpoint, beside the weights."""

    @abstractmethod
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`."""

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor to read a checkpoint's `name` into. size: that of the whole tensor, also where ranks hold shards."""
        return torch.empty(size, dtype=dtype)

    def start_step(self, step: int) -> None:
        """Set the learning rate of training step `step`, which counts from 1. Warm-up starts at lr/warmup_steps.

        The rate is a function of the step: a checkpoint need not hold a scheduler's state.
        """
        self.lr = self._lr * self._factor(step if step <= self._num_warmup else step - 1)
        group = self.adamw.param_groups[0]
        group["lr"] = torch.tensor(self.lr) if isinstance(group["lr"], Tensor) else self.lr

    def step(self) -> tuple[float, bool]:
        """Update once. Returns (gradient norm before clipping, whether the weights moved); clears the gradients.

        Nothing moves where a gradient is not finite.
        """
        norm = self._move(self.max_grad_norm or math.inf)
        self.zero_grad()
        return norm, math.isfinite(norm)

    def _move(self, limit: float) -> float:
        """Update with gradients of a norm of at most `limit`, if theirs is finite. Returns their norm before.

        Gradients well below the limit are not touched: a factor of 1 would cost a read and a write of them.
        """
        norm = self._norm()
        value = norm.item()
        if not math.isfinite(value):
            return value
        if value > CERTAINLY_BELOW * limit:
            clip_grads_with_norm_([w for w in self.weights.values() if w.grad is not None], limit, norm)
        self._update()
        return value

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


def adamw_settings(config: OptimizerConfig) -> dict[str, float | tuple[float, float]]:
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }


def gradient_dtype(weight: Tensor, config: OptimizerConfig) -> torch.dtype:
    """The dtype in which a weight's gradients add up: config.grad_dtype, or the weight's own where that is wider."""
    return torch.promote_types(weight.dtype, getattr(torch, config.grad_dtype))
