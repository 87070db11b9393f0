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

from .problem import Score

RECURSION_LIMIT = 2000
MAX_REASON = 500  # characters

_state: dict = {}


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


def start_worker(pickled_reward: bytes, memory_mb: int, backstop_s: float) -> None:
    """Initialise a worker: limits, then the reward and its imports. What fails here is reported by every score.

    backstop_s: seconds after which the kernel ends a worker that is still on one chunk, even inside C code and even
        when the trainer is gone.
    """
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
    except Exception as error:  # a user's module may raise anything while it is imported
        _state["broken"] = fault(f"the reward cannot be loaded: {type(error).__name__}: {error}")


def score_chunk(payload: bytes) -> tuple[float, list[Verdict]]:
    """(seconds spent, verdicts) of a pickled list of (prompt, completion, row)."""
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
    except MemoryError:
        return Verdict(0.0, "memory")
    except RecursionError:
        return Verdict(0.0, "recursion")
    except (Exception, SystemExit) as error:
        return fault(f"{type(error).__name__}: {error}")
    score = returned if isinstance(returned, Score) else Score(returned, answer=completion.strip())
    value = score.reward
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        return fault(f"returned {value!r} ({type(value).__name__}); expected a finite number such as 0.0 or 1.0")
    return Verdict(float(value), score.reason, answer=score.answer)


def _limit_memory(memory_mb: int) -> None:
    import resource

    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a limit below what is already mapped: workers there run without one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
