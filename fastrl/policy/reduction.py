"""When ranks sum the gradients of a sharded policy: after every micro-batch, or once an update, at its last one.

Once an update moves 1/M of the bytes of M micro-batches. Until then every rank adds up, in float32, the gradients of
the whole model from its own micro-batches: 4 bytes a parameter, where a shard of the sum takes 4/ranks. Both add the
same float32 numbers in another order.
"""

from typing import Literal

import torch
from torch.distributed.fsdp import FSDPModule

from fastrl.policy.model import Policy

LARGEST_SHARE = 0.25  # of a device's memory, for gradients of the whole model


def reduction_of(
    setting: Literal["auto", "micro-batch", "update"],
    num_parameters: int,
    device: torch.device,
    memory: int,
    num_ranks: int,
) -> Literal["micro-batch", "update"]:
    """What `optimizer.reduce_every` comes to. memory: bytes of the device; on CPU ranks share it."""
    if setting != "auto":
        return setting
    share = memory / num_ranks if device.type == "cpu" else memory
    return "update" if 4 * num_parameters <= LARGEST_SHARE * share else "micro-batch"


def prepare_backward(policy: Policy, *, is_last: bool) -> None:
    """Say whether the coming backward reduces gradients. is_last: of its update. Nothing where nothing is sharded."""
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(is_last or policy.reduce_every == "micro-batch")
