"""Finds settings that make a run fit: tries savings in turn, each on top of those before, and plans the run again."""

from typing import Any

import torch

from fastrl.config.schema import TrainConfig
from fastrl.config.settings import with_settings
from fastrl.plan.plan import Plan, make_plan
from fastrl.plan.workload import planned_device
from fastrl.policy.pretrained import Pretrained

EARLY = {"optimizer.reduce_every": "micro-batch"}
CHECKPOINTING = {"model.gradient_checkpointing": True}
NO_MASTERS = {"optimizer.kind": "adamw-bf16", "optimizer.grad_dtype": "bfloat16"}
EIGHT_BITS = {"optimizer.kind": "adamw-8bit", "optimizer.grad_dtype": "bfloat16"}


def fitting_settings(config: TrainConfig, device_type: str = "", **machine: Any) -> dict[str, object]:
    """The first savings that make the run fit: `section.key` → value, with a smaller token budget where that helps.

    Empty when nothing does. The other arguments are `make_plan`'s.
    """
    _, dtype = planned_device(config, device_type)
    machine = {"base": Pretrained(config.model)} | machine
    settings: dict[str, object] = {}
    plan: Plan | None = None
    for more in ({}, EARLY, CHECKPOINTING, *_rounding(config, dtype, machine.get("num_ranks", 1))):
        if more == EARLY and not (plan and plan.has_whole_gradients):
            continue
        settings |= more
        plan = make_plan(with_settings(config, settings), device_type=device_type, **machine)
        if plan.fits:
            return _differing(config, settings)
        if plan.fitting_tokens:
            budget = {"batch.micro_batch_tokens": min(plan.fitting_tokens, plan.work.update_tokens)}
            if make_plan(with_settings(config, settings | budget), device_type=device_type, **machine).fits:
                return _differing(config, settings | budget)
    return {}


def _rounding(config: TrainConfig, dtype: torch.dtype, num_ranks: int) -> list[dict[str, object]]:
    """Optimizers without masters; none where parameters are sharded, because shards are float32."""
    if num_ranks > 1 or config.optimizer.offload:
        return []
    rounded = {} if dtype == torch.bfloat16 else {"model.dtype": "bfloat16"}
    return [rounded | NO_MASTERS, EIGHT_BITS]


def savings_text(settings: dict[str, object]) -> str:
    """One line, as in a config file."""
    if not settings:
        return "no saving that is tried makes it fit (sampler.batch_size and sampler.max_new_tokens stay as they are)"
    values = {name: str(v).lower() if isinstance(v, bool) else repr(v) for name, v in settings.items()}
    return f"would fit with: {', '.join(f'{name} = {value}' for name, value in values.items())}"


def _differing(config: TrainConfig, settings: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if with_settings(config, {name: value}) != config}
