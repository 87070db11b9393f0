"""What runs inside a verifier worker process: limits first, then the reward, one call at a time. Of a reward that is
awaited (`async def`) all calls of a chunk wait together, in one event loop that lives as long as the worker.

A worker imports this package and what the reward needs; torch and transformers are not among it. Over its channel it
gets, pickled, its `Orders` and then chunks: lists of `Call`. It sends a `Message` when it is ready, and then one for
each call as soon as it is done, so that the pool knows which call a worker is at.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

from ..problem import Environment, GroupReward, Prompt, Reward
from ..signatures import is_async, is_environment, judges_groups
from .replay import replay
from .verdict import Verdict, describe, fault, group_verdicts_of, verdict_of

RECURSION_LIMIT = 2000
Unit = Literal["completion", "group", "conversation"]  # what one call of the reward judges

MAX_GROWTH = 0.75  # of the address space that the first call left free; then the worker is "grown"


@dataclass(frozen=True)
class Orders:
    """What a worker is to do."""

    reward: bytes  # pickled
    memory_mb: int


class Call(NamedTuple):
    """What one call of the reward judges: a completion, all of a group, or the model's turns in a conversation.

    replies: what the environment said to the first of the turns when these were played before.
    """

    prompt: Prompt
    completions: list[str]
    row: dict
    replies: Sequence[str] = ()


@dataclass(frozen=True)
class Message:
    """What a worker sends: when it is ready, what its reward judges; then the verdicts of each call, in their order.

    is_grown: it holds so much memory that it should be replaced. is_concurrent: calls of its reward wait together.
    broken: why the reward cannot be loaded, which is what it says of each call, too; empty: it can.
    """

    pid: int
    unit: Unit = "completion"
    verdicts: tuple[Verdict, ...] = ()
    is_grown: bool = False
    is_concurrent: bool = False
    broken: str = ""


Judge = Callable[[Call], list[Verdict]]
AwaitedJudge = Callable[[Call], Awaitable[list[Verdict]]]


def work(channel: Connection) -> None:
    """The life of a worker; never returns."""
    pid = os.getpid()
    try:
        orders: Orders = pickle.loads(channel.recv_bytes())
        _limit(orders.memory_mb)
        judge, unit, is_concurrent, broken = _load(orders)
        channel.send(Message(pid, unit, is_concurrent=is_concurrent, broken=broken))
        limit_bytes = 0.0

        def send(verdicts: list[Verdict]) -> None:
            nonlocal limit_bytes
            if os.getpid() != pid:
                os._exit(0)  # a child that the reward forked has come back from it
            signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm that the reward left set
            num_bytes = _address_space()
            limit_bytes = limit_bytes or num_bytes + MAX_GROWTH * (orders.memory_mb * 2**20 - num_bytes)
            channel.send(Message(pid, verdicts=tuple(verdicts), is_grown=num_bytes > limit_bytes))

        runner = asyncio.Runner()  # makes its loop when it runs first
        while True:
            calls = pickle.loads(channel.recv_bytes())
            if is_concurrent:
                runner.run(_judge_together(calls, judge, send))
                continue
            for call in calls:
                send(judge(call))
    except EOFError:
        os._exit(0)
    except BaseException as error:  # the channel broke, or no memory is left to read the next chunk
        with contextlib.suppress(BaseException):
            print(f"verifier worker: {describe(error)}", file=sys.stderr, flush=True)
        os._exit(1)


async def _judge_together(calls: list[Call], judge: AwaitedJudge, send: Callable) -> None:
    """Verdicts are sent in the order of the calls, each as soon as those before it are known, also while others run."""
    known: dict[int, list[Verdict]] = {}
    num_sent = 0

    async def settle(number: int) -> None:
        nonlocal num_sent
        known[number] = await judge(calls[number])
        while num_sent in known:
            send(known.pop(num_sent))
            num_sent += 1

    await asyncio.gather(*map(settle, range(len(calls))))


def _load(orders: Orders) -> tuple[Judge | AwaitedJudge, Unit, bool, str]:
    """(the reward as a function that never raises, even if it cannot be loaded; what it judges; whether it is awaited;
    why it cannot be loaded).

    One that is awaited gives coroutines of its verdicts.
    """
    try:
        reward = pickle.loads(orders.reward)
        prepare = getattr(reward, "prepare", None)
        if prepare is not None:
            prepare()
        unit = _unit(reward)
        is_awaited = unit != "conversation" and is_async(reward)
    except BaseException as error:  # a user's module may raise anything while it is imported
        broken = fault(f"the reward cannot be loaded: {describe(error)} (with task.memory_mb = {orders.memory_mb})")
        return lambda call: [broken] * len(call.completions), "completion", False, broken.reason
    return (_awaited_judge if is_awaited else _judge)(reward, unit), unit, is_awaited, ""


def _unit(reward: Reward | GroupReward | Environment) -> Unit:
    """TypeError for a reward whose parameters say two things."""
    if is_environment(_unwrapped(reward)):
        return "conversation"
    return "group" if judges_groups(reward) else "completion"


def _unwrapped(reward: Reward | GroupReward | Environment) -> Reward | GroupReward | Environment:
    return getattr(reward, "__wrapped__", reward)


def _judge(reward: Reward | GroupReward | Environment, unit: Unit) -> Judge:
    def judge(call: Call) -> list[Verdict]:
        try:
            if unit == "conversation":
                return [replay(_unwrapped(reward), call.prompt, call.completions, call.replies, call.row)]
            return _verdicts(unit, call, _asked(reward, unit, call))
        except BaseException as error:  # CancelledError, KeyboardInterrupt, SystemExit: the reward's, nobody else's
            return [_failure(error)] * (1 if unit == "conversation" else len(call.completions))

    return judge


def _awaited_judge(reward: Reward | GroupReward, unit: Unit) -> AwaitedJudge:
    async def judge(call: Call) -> list[Verdict]:
        try:
            returned = _asked(reward, unit, call)
            return _verdicts(unit, call, await returned if isawaitable(returned) else returned)
        except BaseException as error:
            return [_failure(error)] * len(call.completions)

    return judge


def _asked(reward: Reward | GroupReward, unit: Unit, call: Call) -> object:
    """What the reward returns, or an awaitable of it."""
    if unit == "group":
        return reward(call.prompt, list(call.completions), **call.row)
    (completion,) = call.completions
    return reward(call.prompt, completion, **call.row)


def _verdicts(unit: Unit, call: Call, returned: object) -> list[Verdict]:
    if unit == "group":
        return group_verdicts_of(returned, call.completions)
    return [verdict_of(returned, call.completions[0])]


def _failure(error: BaseException) -> Verdict:
    if isinstance(error, MemoryError):
        return Verdict(0.0, "memory")
    return Verdict(0.0, "recursion") if isinstance(error, RecursionError) else fault(describe(error))


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
