"""Which settings make a run fit that does not: tried in turn, each on top of the ones before, by planning the run."""

from typing import Any

import torch

from fastrl.config.schema import TrainConfig
from fastrl.config.settings import with_settings
from fastrl.plan.plan import make_plan, planned_device

CHECKPOINTING = {"model.gradient_checkpointing": True}
NO_MASTERS = {"optimizer.kind": "adamw-bf16", "optimizer.grad_dtype": "bfloat16"}
EIGHT_BITS = {"optimizer.kind": "adamw-8bit", "optimizer.grad_dtype": "bfloat16"}


def fitting_settings(config: TrainConfig, device_type: str = "", **machine: Any) -> dict[str, object]:
    """`section.key` → value of the first savings that make the run fit, with a smaller token budget where that is
    needed besides; empty when nothing does. The other arguments are `make_plan`'s.
    """
    _, dtype = planned_device(config, device_type)
    rounded = {} if dtype == torch.bfloat16 else {"model.dtype": "bfloat16"}
    settings: dict[str, object] = {}
    is_sharded = machine.get("num_ranks", 1) > 1 or config.optimizer.offload  # float32 shards: no kind without masters
    for more in ({}, CHECKPOINTING, *(() if is_sharded else (rounded | NO_MASTERS, EIGHT_BITS))):
        settings |= more
        plan = make_plan(with_settings(config, settings), device_type=device_type, **machine)
        if not plan.fits and plan.fitting_tokens:
            budget = {"batch.micro_batch_tokens": min(plan.fitting_tokens, plan.update_tokens)}
            plan = make_plan(with_settings(config, settings | budget), device_type=device_type, **machine)
            if plan.fits:
                return _differing(config, settings | budget)
        elif plan.fits:
            return _differing(config, settings)
    return {}


def savings_text(settings: dict[str, object]) -> str:
    """One line, as in a config file."""
    if not settings:
        return "no setting that saves memory makes it fit"
    values = {name: str(v).lower() if isinstance(v, bool) else repr(v) for name, v in settings.items()}
    return f"would fit with: {', '.join(f'{name} = {value}' for name, value in values.items())}"


def _differing(config: TrainConfig, settings: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in settings.items() if with_settings(config, {name: value}) != config}
