"""A model whose parameters are sharded over the ranks (FSDP2): float32 shards, compute in the model's own dtype.

A block is gathered for its forward and again for its backward. Embedding and head stay gathered from the forward to
the end of the backward. Gradients are reduced in float32 and *summed*, not averaged: token weights are the global
values of the optimizer step already. `whole` gathers all parameters at once, to sample from the trained module itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fastrl.policy.model import Backbone
from fastrl.policy.recompute import blocks_of
from fastrl.policy.soundness import TOLERANCE, random_rollout
from fastrl.process.ranks import Ranks


def shard(model: Backbone, ranks: Ranks, *, offload: bool = False) -> None:
    """Shard in place, block by block. Afterwards all ranks must call the model equally often.

    offload: shards, gradients and optimizer states live in CPU memory. ValueError for an architecture without blocks,
    and where sharding changes scores.
    """
    name, dtype, before = type(model.model).__name__, model.dtype, _checked_scores(model)
    if not blocks_of(model.model):
        raise ValueError(f"{name} does not say what its blocks are: it cannot be sharded over processes")
    _shard_blocks(model, ranks, offload)
    model.ranks, model.dtype = ranks, dtype
    worst = (_checked_scores(model) - before).abs().max().item()
    if not worst <= TOLERANCE[dtype]:
        raise ValueError(f"{name}: sharding changes its scores by {worst:.3g}: it cannot be trained so")


def _shard_blocks(model: Backbone, ranks: Ranks, offload: bool) -> None:
    """Each block is a unit of FSDP2, and what lies outside of blocks is one more. Gradients are summed."""
    dtype = model.dtype
    settings = {
        "mesh": init_device_mesh(model.device.type, (ranks.world_size,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=model.device.type == "cuda") if offload else OffloadPolicy(),
    }
    for block in blocks_of(model.model):
        fully_shard(block.float(), **settings)
    fully_shard(model.float(), **settings)
    for module in _units(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _checked_scores(model: Backbone) -> Tensor:
    """Log-probs of a few random tokens, or a critic's values of them: (12,).

    The first forward after sharding also tells FSDP2 which module is the root.
    """
    scores_N, *_ = model(model.micro_batch(random_rollout(model.model, 12, seed=0)), mode="score")
    release(model)
    return scores_N


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter is a shard."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def _units(module: nn.Module) -> list[FSDPModule]:
    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def release(module: nn.Module) -> None:
    """Free what is gathered: after a forward without backward the root still is."""
    for unit in _units(module):
        unit.reshard()


@contextmanager
def whole(model: Backbone) -> Iterator[None]:
    """Inside, every rank has all parameters gathered. A model without shards stays as it is.

    Forwards inside make no collective call, so ranks may run different numbers of them.
    """
    units = _units(model)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()
