"""The processes that train one policy together: who this one is, and the few exchanges that a step makes.

`torchrun` starts them, one for each device. Alone, every exchange is the identity and no process group exists. What
is exchanged are Python objects of the same job (rollouts, scores, counts; about 14 bytes a token), pickled over gloo;
parameters and gradients travel by FSDP2's own collectives (`policy.sharding`).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number among `world_size`. All of them must make the same calls (but for `share`)."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """The one process that writes files and talks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, counts: Counter[str]) -> Counter[str]:
        """Everyone's counts added, in the order of the ranks, so that all have the same sum."""
        return sum_counts(self.gather(counts))

    def agree(self, check: Callable[[], T]) -> T:
        """check(), which every rank has to pass: the first that does not raises its error, the others exit with 2."""
        try:
            result, failed = check(), False
        except (ValueError, OSError) as error:
            result, failed = error, True
        failures = self.gather(failed)
        if not any(failures):
            return result
        if failures.index(True) == self.rank:
            raise result
        raise SystemExit(2)

    def share(self, items: Sequence[T], filler: T) -> list[T]:
        """This rank's part of items that all ranks hold: every world_size-th, as many on each, `filler` at the end."""
        rounds = -(-len(items) // self.world_size)
        mine = list(items[self.rank :: self.world_size])
        return mine + [filler] * (rounds - len(mine))


def sum_counts(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Key by key; negative and zero values stay, which `+` would drop."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if num_ranks() > 1 else 0


def on_every_rank(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """What `action()` returned on each rank, in rank order. Collective over `group` (default: all processes).

    Where it fails on one rank, all raise, with the first failing rank's message: OSError for files that cannot be read
    or written, ValueError for a ValueError, RuntimeError for the rest. One process alone needs no torch.distributed.
    """
    if num_ranks() == 1:
        return [action()]
    result, problem = None, None
    try:
        result = action()
    except Exception as error:
        problem = error
    outcomes: list[tuple[T | None, Exception | None]] = [(None, None)] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, (result, problem and _portable(problem)), group)
    if problem:
        raise problem
    for _, error in outcomes:
        if error:
            raise error
    return [value for value, _ in outcomes]


def on_rank_0(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `action()` returns or raises on rank 0, on every rank; the others do not call it. As `on_every_rank`."""
    return on_every_rank(lambda: action() if rank() == 0 else None, group)[0]


def _portable(error: Exception) -> Exception:
    """An exception of the same sort that survives pickling."""
    if isinstance(error, (OSError, SafetensorError)):
        return OSError(str(error))
    return ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


ALONE = Ranks()
TIMEOUT_S = 3600.0  # of a collective; where there is a watchdog its limit for a phase, waiting included, comes first


@contextmanager
def joined(device: torch.device, *, timeout_s: float = TIMEOUT_S, needs_group: bool = False) -> Iterator[Ranks]:
    """The ranks that torchrun started, as a process group while the block runs; `ALONE` without torchrun.

    Objects go over gloo, CUDA tensors over NCCL. A rank that waits longer than timeout_s for another one raises.
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
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
