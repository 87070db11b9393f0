"""The optimizer that a config names, and whether it can run here."""

import importlib.util

import torch
from torch import nn

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.optimizer.one_pass import OnePassOptimizer


def build_optimizer(module: nn.Module, config: OptimizerConfig, num_steps: int) -> Optimizer:
    """The optimizer that `config.kind` names, as the device of the trained weights takes it."""
    if config.kind == "adamw":
        is_on_cpu = all(p.device.type == "cpu" for p in module.parameters() if p.requires_grad)
        return (MasterOptimizer if is_on_cpu else OnePassOptimizer)(module, config, num_steps)
    from fastrl.policy.optimizer.rounding import RoundingOptimizer

    return RoundingOptimizer(module, config, num_steps)


def check_weights(kind: str, dtype: torch.dtype) -> None:
    """ValueError for a kind that does not go with weights of `dtype`."""
    if kind != "adamw" and dtype != torch.bfloat16:
        raise ValueError(
            f"optimizer.kind = '{kind}' rounds bfloat16 weights at random, and the weights would be {dtype}: set "
            "model.dtype = 'bfloat16', or optimizer.kind = 'adamw'"
        )


def check_optimizer(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """ValueError for a kind that does not go with the weights or cannot run here. Compiles one small step to know."""
    check_weights(kind, dtype)
    if kind == "adamw":
        return
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"optimizer.kind = '{kind}', but torchao is not installed: pip install '.[low-memory]' in fastrl's clone"
        )
    from fastrl.policy.optimizer.rounding import compiler_problem

    if problem := compiler_problem(device):
        raise ValueError(
            f"optimizer.kind = '{kind}' compiles its step, which fails here ({problem}): install a C++ compiler (and "
            "Triton for CUDA), or use optimizer.kind = 'adamw'"
        )
