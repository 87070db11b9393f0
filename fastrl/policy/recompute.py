"""Activation checkpointing by block: a block keeps its input only, and is computed again in the backward.

transformers' own switch acts in training mode alone, which would turn dropout on; here every block's forward is
wrapped instead, so that the model stays in evaluation mode. Extra cost: one forward of the blocks a backward.
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
    """Wrap the forward of each block, once; returns their number. ValueError for an architecture that names none."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"model.gradient_checkpointing: {type(model).__name__} does not say what its blocks are")
    for block in blocks:
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Without gradient (sampling, scoring) there is nothing to keep. No random numbers are drawn: dropout is off."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
