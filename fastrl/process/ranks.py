"""The processes that train one policy together: who this one is, and the few exchanges that a step makes.

`torchrun` starts them, one for each device. Alone, every exchange is the identity and no process group exists. Columns
of rollouts travel as arrays, a few small objects (errors, decisions) as pickles, both over gloo. Parameters and
gradients travel by FSDP2's own collectives (`policy.sharding`).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.numpy import load, save

T = TypeVar("T")

TIMEOUT_S = 3600.0  # of a collective; where there is a watchdog its limit for a phase, waiting included, comes first


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world_size`. All of them must make the same calls (but for `share`).

    group: what the exchanges go over; None: the default group.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """The one process that writes files and talks."""
        return self.rank == 0

    def apart(self) -> "Ranks":
        """The same ranks with a gloo group of their own, for the exchanges of another thread."""
        if self.world_size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S)))

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, self.group)
        return values

    def gather_arrays(self, arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Everyone's arrays, by rank. Their shapes may differ from rank to rank."""
        if self.world_size == 1:
            return [arrays]
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), self.group)
        parts = [torch.empty(max(map(int, sizes)), dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, torch.nn.functional.pad(mine, (0, len(parts[0]) - len(mine))), self.group)
        return [load(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def gather_array(self, array: np.ndarray) -> list[np.ndarray]:
        """Everyone's array, by rank."""
        return [arrays["array"] for arrays in self.gather_arrays({"array": array})]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Everyone's values added, in the order of the ranks, so that all have the same sum."""
        return np.sum(self.gather_array(values), axis=0)

    def agree(self, action: Callable[[], T]) -> T:
        """What action() returns here. If it fails on any rank all raise: the own error, or the first failing rank's.

        The error of another rank arrives as an OSError if files were its cause, as a ValueError if it was one, else as
        a RuntimeError. `told_by` of the error is the first failing rank: see `joined`.
        """
        if self.world_size == 1:
            return action()
        result, problem = None, None
        try:
            result = action()
        except Exception as error:
            problem = error
        problems = self.gather(problem and _portable(problem))
        first = next((rank for rank, one in enumerate(problems) if one), None)
        if first is None:
            return result
        problem = problem or problems[first]
        problem.told_by = first
        raise problem

    def on_main(self, action: Callable[[], T]) -> T:
        """What action() returns or raises on the main rank, on every rank; the others do not call it."""
        return self.gather(self.agree(lambda: action() if self.is_main else None))[0]

    def share(self, items: Sequence[T], filler: T) -> list[T]:
        """This rank's part of items that all ranks hold: every world_size-th. `filler` makes all parts equally long."""
        rounds = -(-len(items) // self.world_size)
        mine = list(items[self.rank :: self.world_size])
        return mine + [filler] * (rounds - len(mine))


ALONE = Ranks()


def _portable(error: Exception) -> Exception:
    """An exception of the same sort that survives pickling."""
    if isinstance(error, (OSError, SafetensorError)):
        return OSError(str(error))
    return ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def joined(device: torch.device, *, timeout_s: float = TIMEOUT_S, needs_group: bool = False) -> Iterator[Ranks]:
    """The ranks that torchrun started, as a process group while the block runs; `ALONE` without torchrun.

    Objects go over gloo, CUDA tensors over NCCL. A rank that waits longer than timeout_s for another one raises. When
    all ranks raise an error of `agree`, the first failing one reports it and the others exit silently with status 1.
    needs_group: make a group of one process, too (FSDP2 needs one to offload to the CPU).
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world_size == 1 and not needs_group:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield Ranks(rank, world_size)
    except Exception as error:
        if getattr(error, "told_by", rank) != rank:
            raise SystemExit(1) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
