"""The processes of a run: work that every rank does and whose outcome all of them learn."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from safetensors import SafetensorError

T = TypeVar("T")


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
