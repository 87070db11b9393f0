"""Verifier workers: model output is untrusted, so rewards run in processes that can be killed and replaced.

Completions travel in chunks and verdicts come back one by one, so that the pool knows which completion a worker was at
when it hung or died. That worker is replaced, and a fresh one tries that completion again: what a leaking or
deadlocked worker could not settle is no completion's fault. Only what a fresh worker cannot settle either is blamed:

    hangs -> 0 "timeout"      MemoryError -> 0 "memory"      RecursionError -> 0 "recursion"
    SIGSEGV and the like -> 0 "crashed"      over 1 MB -> 0 "too long"      lone surrogates -> 0 "invalid unicode"

What is no completion's doing (a worker that exits or is killed three times, an import error, any exception out of the
reward, a returned None or NaN) gives no reward at all: `Verdict.is_fault`. `faults` says how many faults and limits
end the run with a VerifierError, in all or in one batch: more than 1 % and more than 3 %.
"""

import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from fastrl.watchdog import alive

from ..problem import Prompt, Reward
from .faults import LIMIT_REASONS, VerifierError, check_faults, check_limits, most_of_batch, most_so_far
from .process import WorkerProcess
from .worker import Orders, Verdict, fault

__all__ = ["LIMIT_REASONS", "POOL_REASONS", "Item", "Verdict", "VerifierError", "VerifierPool"]

Item = tuple[Prompt, str, dict]  # prompt, completion, row

MAX_BYTES = 1_000_000  # of a completion, as UTF-8
CHUNK_SECONDS = 0.25  # what a chunk should take; its size follows the measured time per completion
FIRST_CHUNK, MAX_CHUNK = 8, 64
MAX_CHUNK_BYTES = 1_000_000
CHUNKS_PER_WORKER = 1000  # then the worker is replaced: bounds what a leaking verifier holds
START_GRACE_S = 120.0  # for a worker's start: imports on a cold disk
MAX_STARTS = 3  # in a row that fail
MAX_DEATHS = 3  # of a worker on one completion, before that is a fault
WAIT_S = 5.0  # between signs of life to the watchdog
REPORT_S = 1.0  # for the keeper of a worker that has gone

POOL_REASONS = (*LIMIT_REASONS, "too long", "invalid unicode")
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class VerifierPool:
    """Scores completions in worker processes; a context manager. Not to be shared between threads.

    reward: picklable, `reward(prompt, completion, **row) -> float | Score`.
    timeout_s: wall-clock seconds that one completion may take.
    memory_mb: address space of a worker, in MiB.
    num_workers: processes.

    Counts since the start: `num_scored`, `num_faults`, `num_restarts` (of workers), `num_limits` (completions by the
    first limit that they hit, settled afterwards or not) and `num_by_reason` for the reasons that the pool itself gives
    (timeout, memory, recursion, crashed, too long, invalid unicode).
    """

    def __init__(self, reward: Reward, *, timeout_s: float = 5.0, memory_mb: int = 2048, num_workers: int = 2):
        if timeout_s <= 0 or memory_mb <= 0 or num_workers <= 0:
            raise ValueError(
                "timeout_s, memory_mb and num_workers must be positive, "
                f"found {timeout_s}, {memory_mb} and {num_workers}"
            )
        self.timeout_s = timeout_s
        self.num_workers = num_workers
        self.num_scored = self.num_faults = self.num_restarts = 0
        self.num_limits: Counter[str] = Counter()
        self.num_by_reason: Counter[str] = Counter()
        self._orders = Orders(pickle.dumps(reward), memory_mb)
        self._seconds_per_item = CHUNK_SECONDS / FIRST_CHUNK
        self._failed_starts = 0
        self._is_closed = False
        self._workers = [self._new_worker() for _ in range(num_workers)]

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing, and every process that they started."""
        self._is_closed = True
        for worker in self._workers:
            worker.end()

    @property
    def num_timeouts(self) -> int:
        return self.num_by_reason["timeout"]

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts of (prompt, completion, row) triples, in order.

        Never hangs: a completion takes at most two limits of time. Raises VerifierError when too many completions were
        faults or hit a limit (see `faults`), or when no worker can start.
        """
        batch = _Batch(items)
        try:
            while not batch.is_settled:
                self._dispatch(batch)
                self._listen(batch)
                self._check(batch)
        finally:  # an exception leaves no worker with a chunk of a batch that nobody waits for
            for worker in [w for w in self._workers if w.indices]:
                self._replace(worker)
        self.num_scored += len(items)
        self.num_faults += batch.num_faults
        self.num_limits.update(batch.limits.values())
        self.num_by_reason.update(v.reason for v in batch.verdicts if v.reason in POOL_REASONS)
        return batch.verdicts

    def _dispatch(self, batch: "_Batch") -> None:
        """Work for every idle worker: a fresh one first tries again what another could not settle."""
        share = -(-len(batch.waiting) // self.num_workers)
        size = max(1, min(MAX_CHUNK, int(CHUNK_SECONDS / self._seconds_per_item), share))
        for worker in [w for w in self._workers if w.is_idle]:
            if worker.num_chunks == CHUNKS_PER_WORKER:
                self._replace(worker)
                continue
            indices = batch.next_suspect() if worker.is_fresh else []
            indices = indices or batch.next_chunk(size)
            if not indices:
                if len(batch.suspects) > sum(w.is_fresh for w in self._workers):
                    self._replace(worker)
                continue
            try:
                worker.give(indices, [batch.items[i] for i in indices], self.timeout_s)
            except OSError:  # it has gone, or takes nothing
                batch.put_back(indices)
                self._replace(worker)

    def _listen(self, batch: "_Batch") -> None:
        """Wait until a worker says something, goes or runs out of time, and take that in."""
        now = time.monotonic()
        wait_s = min((w.deadline - now for w in self._workers if not w.is_idle), default=0.0)
        wait([c for w in self._workers for c in (w.channel, w.lifeline)], max(0.0, min(wait_s, WAIT_S)))
        alive()  # no result is not a hang: the pool has limits of its own
        for worker in list(self._workers):
            was_ready = worker.is_ready
            for index, verdict in worker.take(self.timeout_s):
                self._take_in(batch, worker, index, verdict)
            if worker.is_ready and not was_ready:
                self._failed_starts = 0
            if worker.has_gone or worker.is_late:
                self._lose(batch, worker)
            elif worker.is_grown:
                batch.put_back(worker.indices)
                self._replace(worker)

    def _take_in(self, batch: "_Batch", worker: WorkerProcess, index: int, verdict: Verdict) -> None:
        now = time.monotonic()
        seconds, worker.last_s = now - worker.last_s, now
        self._seconds_per_item = 0.9 * self._seconds_per_item + 0.1 * max(seconds, 1e-6)
        if verdict.reason == "memory" and not verdict.is_fault:
            worker.is_grown = True
            batch.hit(index, "memory")
            return
        if verdict.reason == "recursion" and not verdict.is_fault:
            batch.limits[index] = "recursion"
        batch.settle(index, verdict)

    def _lose(self, batch: "_Batch", worker: WorkerProcess) -> None:
        """A worker went, or is out of time: what that says about the completion that it was at."""
        indices = worker.indices
        status = self._replace(worker, REPORT_S if worker.has_gone else 0.0)
        if not worker.is_ready:
            self._failed_starts += 1 if worker.has_gone else MAX_STARTS
            if self._failed_starts >= MAX_STARTS:
                raise VerifierError(
                    f"verifier workers do not start ({_ending(status, START_GRACE_S)}); "
                    f"can they start at all, with task.memory_mb = {self._orders.memory_mb}?"
                )
        if not indices:
            return
        batch.put_back(indices[1:])
        if not worker.has_gone:
            batch.hit(indices[0], "timeout")
        elif status is not None and -status in _CRASHES:
            batch.hit(indices[0], "crashed")
        else:
            batch.die(indices[0], _ending(status, self.timeout_s))

    def _replace(self, worker: WorkerProcess, patience_s: float = 0.0) -> int | None:
        """End a worker and start another in its place; how it had ended by itself."""
        status = worker.end(patience_s)
        if self._is_closed:
            raise VerifierError("the verifier pool is closed")
        self.num_restarts += 1
        self._workers[self._workers.index(worker)] = self._new_worker()
        return status

    def _new_worker(self) -> WorkerProcess:
        return WorkerProcess(self._orders, START_GRACE_S)

    def _check(self, batch: "_Batch") -> None:
        """Of this batch alone, and of all completions so far: a verifier may break after a million good verdicts."""
        limits, num = Counter(batch.limits.values()), len(batch.items)
        settings = f"task.timeout_s = {self.timeout_s:g}, task.memory_mb = {self._orders.memory_mb}"
        check_faults(batch.num_faults, num, batch.last_fault)
        check_faults(self.num_faults + batch.num_faults, self.num_scored + num, batch.last_fault)
        check_limits(limits, num, most_of_batch(num), settings)
        check_limits(self.num_limits + limits, self.num_scored + num, most_so_far(self.num_scored + num), settings)


class _Batch:
    """The completions of one call of `score`: which wait, which are suspects, and what became of them.

    `suspects` have hit a limit or lost their worker: they run again, each alone in a fresh worker.
    """

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.verdicts: list[Any] = [_refuse(completion) for _, completion, _ in items]
        self.waiting = deque(i for i, verdict in enumerate(self.verdicts) if verdict is None)
        self.suspects: deque[int] = deque()
        self.num_open = len(self.waiting)
        self.limits: dict[int, str] = {}  # the first that a completion has hit
        self.num_deaths: Counter[int] = Counter()
        self.num_faults = 0
        self.last_fault = ""

    @property
    def is_settled(self) -> bool:
        return not self.num_open

    def next_chunk(self, size: int) -> list[int]:
        """Up to `size` completions."""
        indices: list[int] = []
        num_bytes = 0
        while self.waiting and len(indices) < size and num_bytes < MAX_CHUNK_BYTES:
            indices.append(self.waiting.popleft())
            num_bytes += len(self.items[indices[-1]][1])
        return indices

    def next_suspect(self) -> list[int]:
        """One completion, for a fresh worker."""
        return [self.suspects.popleft()] if self.suspects else []

    def put_back(self, indices: list[int]) -> None:
        for index in indices:
            is_suspect = index in self.limits or index in self.num_deaths
            (self.suspects if is_suspect else self.waiting).append(index)

    def hit(self, index: int, limit: str) -> None:
        """A limit: the second time, in a fresh worker, it is the completion's verdict."""
        if index in self.limits:
            self.settle(index, Verdict(0.0, limit))
        else:
            self.limits[index] = limit
            self.suspects.append(index)

    def die(self, index: int, how: str) -> None:
        """A worker that ended by itself, or was killed from outside: nobody knows by whom."""
        self.num_deaths[index] += 1
        if self.num_deaths[index] < MAX_DEATHS:
            self.suspects.append(index)
        else:
            self.settle(index, fault(f"the worker {how} {MAX_DEATHS} times on this completion"))

    def settle(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        self.num_open -= 1
        if verdict.is_fault:
            self.num_faults += 1
            self.last_fault = verdict.reason


def _refuse(completion: str) -> Verdict | None:
    """The verdict for a completion that no worker should see, or None."""
    try:
        num_bytes = len(completion) if len(completion) > MAX_BYTES else len(completion.encode())
    except UnicodeEncodeError:
        return Verdict(0.0, "invalid unicode")
    return Verdict(0.0, "too long") if num_bytes > MAX_BYTES else None


def _ending(status: int | None, limit_s: float) -> str:
    if status is None:
        return f"gave no sign for {limit_s:g} s"
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
