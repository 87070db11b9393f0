"""Activation checkpointing by block: each block keeps its input only, and is computed again in the backward.

transformers' own switch acts in training mode only, and that mode turns dropout on. Here each block's forward is
wrapped instead, and the model stays in evaluation mode. Cost: one more forward of the blocks for each backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost layers that transformers itself would checkpoint."""
    if isinstance(model, GradientCheckpointingLayer):
        return [model]
    return [block for child in model.children() for block in blocks_of(child)]


def recompute_blocks(model: PreTrainedModel) -> int:
    """Wrap the forward of each block once. Returns the number of blocks; ValueError if the architecture names none."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"model.gradient_checkpointing: {type(model).__name__} does not say what its blocks are")
    for block in blocks:
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Without gradient, in sampling and scoring, nothing is kept anyway. Dropout is off: no random state to restore."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
