"""Bytes that each kind of optimizer keeps beside the weights, from the parameters' shapes alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.base import gradient_dtype

BLOCK = 256  # values that share a float32 scale in 8-bit moments
MIN_QUANTISED = 4096  # smaller parameters keep float32 moments


@dataclass(frozen=True)
class OptimizerBytes:
    """gradients: kept while training. step: what an update needs besides all of these while it runs."""

    gradients: int
    masters: int
    states: int
    step: int


def optimizer_bytes(weights: Iterable[Tensor], config: OptimizerConfig) -> OptimizerBytes:
    """Of those weights that require a gradient."""
    weights = [weight for weight in weights if weight.requires_grad]
    gradients = sum(w.numel() * gradient_dtype(w, config).itemsize for w in weights)
    if config.kind == "adamw":
        masters = sum(4 * w.numel() for w in weights if w.dtype != torch.float32)
        return OptimizerBytes(gradients, masters, sum(8 * w.numel() for w in weights), 0)
    if config.kind == "adamw-bf16":
        return OptimizerBytes(gradients, 0, sum(8 * w.numel() for w in weights), 0)
    states = sum(2 * _moment_bytes(w.numel()) for w in weights)
    step = 8 * max((w.numel() for w in weights), default=0)  # both moments in float32, one parameter at a time
    return OptimizerBytes(gradients, 0, states, step)


def training_bytes(module: nn.Module, config: OptimizerConfig, num_ranks: int = 1) -> int:
    """Gradients, masters and moments of `module` on each rank's device.

    Nothing where they are offloaded, but gradients of the whole model where they are reduced once an update.
    """
    found = optimizer_bytes(module.parameters(), config)
    shards = 0 if config.offload else (found.gradients + found.masters + found.states) // num_ranks
    if config.reduce_every != "update":
        return shards
    return shards + found.gradients - (0 if config.offload else found.gradients // num_ranks)


def _moment_bytes(count: int) -> int:
    is_quantised = count >= MIN_QUANTISED and count % BLOCK == 0
    return count + 4 * count // BLOCK + 4 * 256 if is_quantised else 4 * count  # codes, scales, the codes' values
