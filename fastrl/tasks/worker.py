"""What runs inside a verifier worker process: limits first, then the reward, one completion at a time.

A worker imports this package and what the reward needs; torch and transformers are not among it.
"""

import contextlib
import math
import numbers
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, field
from decimal import Decimal

from .guardian import guard
from .problem import Score

RECURSION_LIMIT = 2000
MAX_REASON = 500  # characters
WORN_STATUS = 77  # of a worker that has run out of memory and makes room for a fresh one

_state: dict = {"num_chunks": 0, "is_worn": False}


class WornOut(Exception):
    """This worker ran out of memory on a completion that another one, which has done nothing yet, may have room for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one completion.

    `reward` is None exactly when `is_fault`: the verifier broke by itself, which says nothing about the completion.
    """

    reward: float | None
    reason: str
    is_fault: bool = False
    answer: str | None = field(default=None, compare=False)


def fault(reason: str) -> Verdict:
    """A verdict without a reward."""
    return Verdict(None, reason[:MAX_REASON], is_fault=True)


def start_worker(pickled_reward: bytes, memory_mb: int, backstop_s: float, trainer_pid: int) -> None:
    """Initialise a worker: a guardian, limits, then the reward and its imports. What fails is reported by every score.

    backstop_s: seconds after which the kernel ends a worker that is still on one chunk, even inside C code and even
        when the trainer is gone.
    """
    guard(trainer_pid)
    _limit_memory(memory_mb)
    sys.setrecursionlimit(RECURSION_LIMIT)
    # The default action ends the process at once; a Python handler would wait for C code to return.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # thread pools reserve address space per core
    _state["backstop_s"] = backstop_s
    try:
        _state["reward"] = pickle.loads(pickled_reward)
        prepare = getattr(_state["reward"], "prepare", None)
        if prepare is not None:
            prepare()
    except BaseException as error:  # a user's module may raise anything while it is imported
        _state["broken"] = fault(f"the reward cannot be loaded: {described(error)}")


def score_chunk(payload: bytes) -> tuple[float, list[Verdict]]:
    """(seconds spent, verdicts) of a pickled list of (prompt, completion, row).

    WornOut when memory ran out in a worker that is not fresh; such a worker ends at its next chunk.
    """
    if _state["is_worn"]:
        os._exit(WORN_STATUS)
    _state["num_chunks"] += 1
    items = pickle.loads(payload)
    signal.setitimer(signal.ITIMER_REAL, _state["backstop_s"])
    start = time.perf_counter()
    try:
        verdicts = [_state.get("broken") or _score_one(*item) for item in items]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - start, verdicts


def loaded_modules() -> list[str]:
    """Names of the top-level modules that this process has imported; for tests of what a worker carries."""
    return sorted({name.partition(".")[0] for name in sys.modules})


def _score_one(prompt: str, completion: str, row: dict) -> Verdict:
    try:
        returned = _state["reward"](prompt, completion, **row)
        score = returned if isinstance(returned, Score) else Score(returned, answer=completion.strip())
        answer = None if score.answer is None else str(score.answer)
        return Verdict(_number(score.reward), str(score.reason)[:MAX_REASON], answer=answer)
    except MemoryError:
        _state["is_worn"] = True
        if _state["num_chunks"] > 1:
            raise WornOut from None
        return Verdict(0.0, "memory")
    except RecursionError:
        return Verdict(0.0, "recursion")
    except BaseException as error:  # CancelledError, SystemExit, KeyboardInterrupt: whatever a reward raises is its own
        return fault(described(error))


def described(error: BaseException) -> str:
    """The error's name and text; an error whose text cannot be had is named all the same."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


def _number(value: object) -> float:
    """A finite number, of Python or of one element of an array library. ValueError for anything else."""
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, numbers.Real | Decimal) or not math.isfinite(number):
        raise ValueError(f"returned {value!r} ({type(value).__name__}); expected a finite number such as 0.0 or 1.0")
    return float(number)


def _limit_memory(memory_mb: int) -> None:
    import resource

    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a limit below what is already mapped: workers there run without one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
