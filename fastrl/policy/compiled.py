"""Decoder blocks fused by `torch.compile`: norms, rotary embedding, activation and residuals in few passes over memory.

Blocks of one kind share one compilation, which serves any number of tokens. Attention stays outside of it: it is one
call into a kernel, and what its segments are is Python data of the micro-batch. A call with a cache (generation) and
one of a single token run as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastrl.policy.recompute import blocks_of
from fastrl.policy.soundness import TOLERANCE, hidden_states_and_gradients


class CompiledForward:
    """The forward of a block, compiled where nothing is cached."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward
        self.compiled = torch.compile(forward, dynamic=True)

    def __call__(self, hidden_BLH: Tensor, *args: Any, **kwargs: Any) -> Any:
        is_plain = kwargs.get("past_key_values") is not None or hidden_BLH.shape[1] == 1
        return (self.forward if is_plain else self.compiled)(hidden_BLH, *args, **kwargs)


def wants_compiled(setting: bool | str, device: torch.device) -> bool:
    """model.compile; auto: on CUDA."""
    return device.type == "cuda" if setting == "auto" else bool(setting)


def compile_blocks(model: PreTrainedModel, *, is_required: bool) -> str:
    """Compile the blocks, forward and backward, and compare them with themselves as they were. Returns what was done.

    Where compiling fails or changes results the blocks stay as they were and the text says why; ValueError if
    is_required.
    """
    problem = _problem(model, blocks_of(model))
    if problem and is_required:
        raise ValueError(f"model.compile = true: {type(model).__name__} {problem}; set model.compile = false")
    return f"not compiled: {type(model).__name__} {problem}" if problem else f"{len(blocks_of(model))} compiled"


def _problem(model: PreTrainedModel, blocks: list[torch.nn.Module]) -> str:
    """Why the blocks are left as they were; empty where they now run compiled."""
    if not blocks:
        return "does not say what its blocks are"
    own = hidden_states_and_gradients(model)
    for block in blocks:
        block.forward = CompiledForward(block.forward)
    try:
        ours, problem = hidden_states_and_gradients(model), ""
    except RuntimeError as error:  # what Dynamo and the inductor raise is made of it
        problem = f"cannot be compiled: {' '.join(str(error).split())[:300]}"
    else:
        gaps = [((a - b).norm() / b.norm()).item() for a, b in zip(ours, own, strict=True)]
        if not max(gaps) <= TOLERANCE[model.dtype]:
            what = "hidden states" if max(gaps) == gaps[0] else "gradients"
            problem = f"has other {what} when compiled (relative difference {max(gaps):.3g})"
    if problem:
        for block in blocks:
            del block.forward
    return problem
