"""What runs inside a verifier worker process: limits first, then the reward, one completion at a time.

A worker imports this package and what the reward needs; torch and transformers are not among it. Over its channel it
gets, pickled, its `Orders` and then chunks: lists of (prompt, completion, row). It sends `READY`, and then one verdict
for each completion as soon as it is known, so that the pool knows which completion a worker is at.
"""

import contextlib
import math
import numbers
import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from multiprocessing.connection import Connection

from ..problem import Score

RECURSION_LIMIT = 2000
MAX_REASON = 500  # characters
MAX_GROWTH = 0.75  # of the address space that the first completion left free; then the worker is "grown"


@dataclass(frozen=True)
class Orders:
    """What a worker is to do."""

    reward: bytes  # pickled
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one completion.

    `reward` is None exactly when `is_fault`: the verifier broke by itself, which says nothing about the completion.
    """

    reward: float | None
    reason: str
    is_fault: bool = False
    answer: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Message:
    """What a worker sends: its pid when it is ready, then verdicts; is_grown: it should be replaced."""

    pid: int
    verdict: Verdict | None = None
    is_grown: bool = False


def fault(reason: str) -> Verdict:
    """A verdict without a reward."""
    return Verdict(None, _plain(reason), is_fault=True)


def work(channel: Connection) -> None:
    """The life of a worker; never returns."""
    pid = os.getpid()
    try:
        orders: Orders = pickle.loads(channel.recv_bytes())
        _limit(orders.memory_mb)
        judge = _judge(orders)
        channel.send(Message(pid))
        limit_bytes = 0.0
        while True:
            for prompt, completion, row in pickle.loads(channel.recv_bytes()):
                verdict = judge(prompt, completion, row)
                if os.getpid() != pid:
                    os._exit(0)  # a child that the reward forked has come back from it
                signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that the reward left set
                num_bytes = _address_space()
                limit_bytes = limit_bytes or num_bytes + MAX_GROWTH * (orders.memory_mb * 2**20 - num_bytes)
                channel.send(Message(pid, verdict, num_bytes > limit_bytes))
    except EOFError:
        os._exit(0)
    except BaseException as error:  # the channel broke, or no memory is left to read the next chunk
        with contextlib.suppress(BaseException):
            print(f"verifier worker: {_name(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def _judge(orders: Orders) -> Callable[[str, str, dict], Verdict]:
    """The reward as a function that returns a verdict and raises nothing, even if the reward cannot be loaded."""
    try:
        reward = pickle.loads(orders.reward)
        prepare = getattr(reward, "prepare", None)
        if prepare is not None:
            prepare()
    except BaseException as error:  # a user's module may raise anything while it is imported
        broken = fault(f"the reward cannot be loaded: {_name(error)} (with task.memory_mb = {orders.memory_mb})")
        return lambda *_: broken

    def judge(prompt: str, completion: str, row: dict) -> Verdict:
        try:
            return _verdict(reward(prompt, completion, **row), completion)
        except MemoryError:
            return Verdict(0.0, "memory")
        except RecursionError:
            return Verdict(0.0, "recursion")
        except BaseException as error:  # CancelledError, KeyboardInterrupt, SystemExit: the reward's, nobody else's
            return fault(_name(error))

    return judge


def _verdict(returned: object, completion: str) -> Verdict:
    score = returned if isinstance(returned, Score) else Score(returned, answer=completion.strip())
    value = score.reward
    try:
        # Numbers of numpy and torch, bool_ and arrays of one element included, become Python's.
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, numbers.Real | Decimal) and math.isfinite(float(number)):
            answer = None if score.answer is None else str(score.answer)
            return Verdict(float(number), _plain(str(score.reason)), answer=answer)
    except (ValueError, OverflowError, RuntimeError):  # many elements; an integer beyond all floats
        pass
    shown = _plain(_quoted(value))
    return fault(f"returned {shown} ({type(value).__name__}); expected a finite number such as 0.0 or 1.0")


def _quoted(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return "what cannot be shown"


def _name(error: BaseException) -> str:
    """The exception in one line, also when its text cannot be made."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return name
    return f"{name}: {text}" if text else name


def _plain(text: str) -> str:
    """Short, and without what UTF-8 cannot write."""
    return text[:MAX_REASON].encode("utf-8", "backslashreplace").decode()


def _limit(memory_mb: int) -> None:
    import resource

    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a limit below what is already mapped: workers there run without one.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.setrecursionlimit(RECURSION_LIMIT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # thread pools reserve address space per core


def _address_space() -> int:
    """Bytes, as RLIMIT_AS counts them; 0 where /proc does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
