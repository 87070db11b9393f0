"""Verifier workers: model output is untrusted, so rewards run in processes that can be killed and replaced.

Completions (or groups of them, where the reward judges groups) travel in chunks and verdicts come back one by one, so
that the pool knows which completion a worker was at when it hung or died. That worker is replaced, and a fresh one
tries the completion again, because a leaking or deadlocked worker is no completion's fault. A completion is blamed
only when the fresh worker fails on it, too:

    hangs -> 0 "timeout"      MemoryError -> 0 "memory"      RecursionError -> 0 "recursion"
    SIGSEGV and the like -> 0 "crashed"      over 1 MB -> 0 "too long"      lone surrogates -> 0 "invalid unicode"

A fault is no completion's doing: a worker that exits or is killed three times, an import error, any exception out of
the reward, a returned None or NaN. It gives no reward at all (`Verdict.is_fault`). Limits and faults of a group are
those of all its completions. A limit that an environment hits is a fault of the conversation: nobody else chose what to
do. More than 1 % of faults or 3 % of limits, in one batch or so far, raise a VerifierError (`faults`).
"""

import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import wait

from fastrl.process.watchdog import alive

from ..problem import Environment, GroupReward, Reward
from .batch import Batch, Item
from .faults import LIMIT_REASONS, VerifierError, check_faults, check_limits, most_of_batch, most_so_far
from .process import WorkerProcess
from .verdict import Verdict
from .worker import Call, Orders, Unit

__all__ = ["LIMIT_REASONS", "POOL_REASONS", "Item", "Verdict", "VerifierError", "VerifierPool"]

CHUNK_SECONDS = 0.25  # what a chunk should take; its size follows the measured time per call
FIRST_CHUNK, MAX_CHUNK = 8, 64
CHUNKS_PER_WORKER = 1000  # then the worker is replaced: bounds what a leaking verifier holds
START_GRACE_S = 120.0  # for a worker's start: imports on a cold disk
MAX_STARTS = 3  # in a row that fail
WAIT_S = 5.0  # between signs of life to the watchdog
REPORT_S = 1.0  # for the keeper of a worker that has gone

POOL_REASONS = (*LIMIT_REASONS, "too long", "invalid unicode")
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class VerifierPool(AbstractContextManager):
    """Scores completions in worker processes; a context manager. Any thread may call it: calls of `score` take turns,
    and `close` ends one that runs in another thread with a VerifierError.

    reward: picklable, `reward(prompt, completion, **row) -> float | Score`; or one that judges groups,
        `reward(prompt, completions, **row) -> list[float | Score]`: neighbouring items of the same prompt and row; or
        an environment, whose conversations `play` takes.
    timeout_s: wall-clock seconds that one completion may take; a group may take as many times that as it has members,
        a conversation as it has turns. Of an `async def` a worker awaits up to 64 calls at once, each with this limit.
    memory_mb: address space of a worker, in MiB.
    num_workers: processes.

    Counts since the start: `num_restarts` of workers and, of calls of the reward (for a completion, a group or a
    conversation so far), `num_calls`, `num_faults` and `num_limits` (by the first limit that a call hit, settled
    afterwards or not).
    """

    def __init__(
        self,
        reward: Reward | GroupReward | Environment,
        *,
        timeout_s: float = 5.0,
        memory_mb: int = 2048,
        num_workers: int = 2,
    ):
        if timeout_s <= 0 or memory_mb <= 0 or num_workers <= 0:
            raise ValueError(
                "timeout_s, memory_mb and num_workers must be positive, "
                f"found {timeout_s}, {memory_mb} and {num_workers}"
            )
        self.timeout_s = timeout_s
        self.num_workers = num_workers
        self.num_calls = self.num_faults = self.num_restarts = 0
        self.num_limits: Counter[str] = Counter()
        self._orders = Orders(pickle.dumps(reward), memory_mb)
        self._seconds_per_call = CHUNK_SECONDS / FIRST_CHUNK
        self._failed_starts = 0
        self._unit: Unit | None = None  # until the first worker has loaded the reward
        self._is_closed = False
        self._turn = threading.RLock()  # of one `score`
        self._changing = threading.Lock()  # of the workers: none may start while or after `close` ends them
        self._workers = [self._new_worker() for _ in range(num_workers)]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing, and every process that they started."""
        with self._changing:
            self._is_closed = True
        for worker in self._workers:
            worker.end()

    def unit(self) -> Unit:
        """What one call of the reward judges. Waits until a worker has loaded it."""
        with self._turn:
            while self._unit is None:
                self._listen(Batch.of_conversations([]))
        return self._unit

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts of (prompt, completion, row) triples, in order.

        Never hangs: a call of the reward takes at most two limits of time. Raises VerifierError when too many of them
        were faults or hit a limit (see `faults`), when no worker can start, or when the pool is closed.
        """
        with self._turn:
            return self._verdicts(Batch.of_items(items, self.unit() if items else "completion"))

    def play(self, conversations: Sequence[Call]) -> list[Verdict]:
        """Verdicts of an environment on conversations so far, in order: `Played`, or a fault. Raises as `score` does.

        What an environment does within limits is its own doing: one that is hit is a fault, too. prompt, texts of the
        model, row and known replies of each are a `Call`.
        """
        with self._turn:
            return self._verdicts(Batch.of_conversations(conversations))

    def _verdicts(self, batch: Batch) -> list[Verdict]:
        self._settle(batch)
        self.num_calls += batch.size
        self.num_faults += batch.num_faults
        self.num_limits.update(batch.limits.values())
        return batch.verdicts

    def _settle(self, batch: Batch) -> None:
        try:
            while not batch.is_settled:
                self._dispatch(batch)
                self._listen(batch)
                self._check(batch)
        finally:  # an exception leaves no worker with a chunk of a batch that nobody waits for
            for worker in [w for w in self._workers if w.indices]:
                self._replace(worker)

    def _dispatch(self, batch: Batch) -> None:
        """Give work to every idle worker. A fresh one first tries again a call on which another has failed."""
        share = -(-len(batch.waiting) // self.num_workers)
        size = max(1, min(MAX_CHUNK, int(CHUNK_SECONDS / self._seconds_per_call), share))
        for worker in [w for w in self._workers if w.is_idle]:
            if worker.num_chunks == CHUNKS_PER_WORKER:
                self._replace(worker)
                continue
            indices = batch.next_suspect() if worker.is_fresh else []
            indices = indices or batch.next_chunk(max(1, min(MAX_CHUNK, share)) if worker.is_concurrent else size)
            if not indices:
                if len(batch.suspects) > sum(w.is_fresh for w in self._workers):
                    self._replace(worker)
                continue
            try:
                worker.give(indices, [batch.calls[i] for i in indices], self.timeout_s)
            except OSError:  # it has gone, or takes nothing
                batch.put_back(indices)
                self._replace(worker)

    def _listen(self, batch: Batch) -> None:
        """Wait until a worker says something, ends or runs out of time, and act on it."""
        now = time.monotonic()
        wait_s = min((w.deadline - now for w in self._workers if not w.is_idle), default=0.0)
        wait([c for w in self._workers for c in (w.channel, w.lifeline)], max(0.0, min(wait_s, WAIT_S)))
        alive()  # no result is not a hang: the pool has limits of its own
        for worker in list(self._workers):
            was_ready = worker.is_ready
            for index, verdicts in worker.take():
                self._take_in(batch, worker, index, verdicts)
            if worker.is_ready and not was_ready:
                self._welcome(worker)
            if worker.has_gone or worker.is_late:
                self._lose(batch, worker)
            elif worker.is_grown:
                batch.put_back(worker.indices)
                self._replace(worker)

    def _welcome(self, worker: WorkerProcess) -> None:
        self._failed_starts = 0
        if self._unit not in (None, worker.unit):
            changed = (
                f"the reward judges a {self._unit} at once in one worker and a {worker.unit} in another: it changed"
            )
            raise VerifierError(f"a worker has started anew, and {worker.broken}" if worker.broken else changed)
        self._unit = worker.unit

    def _take_in(self, batch: Batch, worker: WorkerProcess, index: int, verdicts: Sequence[Verdict]) -> None:
        now = time.monotonic()
        seconds, worker.last_s = now - worker.last_s, now
        self._seconds_per_call = 0.9 * self._seconds_per_call + 0.1 * max(seconds, 1e-6)
        reasons = {verdict.reason for verdict in verdicts if not verdict.is_fault}
        if reasons == {"memory"}:
            worker.is_grown = True
            batch.hit(index, "memory")
            return
        if reasons == {"recursion"}:
            batch.blame(index, "recursion")
            return
        batch.settle(index, verdicts)

    def _lose(self, batch: Batch, worker: WorkerProcess) -> None:
        """Replace a worker that went or is out of time, and note what that says about the call that it was at."""
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
        """End a worker and start another in its place. Returns how the old one had ended by itself, as `end` does."""
        status = worker.end(patience_s)
        with self._changing:
            if self._is_closed:
                raise VerifierError("the verifier pool is closed")
            self.num_restarts += 1
            self._workers[self._workers.index(worker)] = self._new_worker()
        return status

    def _new_worker(self) -> WorkerProcess:
        return WorkerProcess(self._orders, START_GRACE_S)

    def _check(self, batch: Batch) -> None:
        """VerifierError for too many faults or limits in this batch, or so far: a verifier may break late, too."""
        limits, num, num_so_far = Counter(batch.limits.values()), batch.size, self.num_calls + batch.size
        what = f"{batch.unit}s"
        settings = f"task.timeout_s = {self.timeout_s:g}, task.memory_mb = {self._orders.memory_mb}"
        check_faults(batch.num_faults, num, what, batch.last_fault)
        check_faults(self.num_faults + batch.num_faults, num_so_far, what, batch.last_fault)
        check_limits(limits, num, what, most_of_batch(num), settings)
        check_limits(self.num_limits + limits, num_so_far, what, most_so_far(num_so_far), settings)


def _ending(status: int | None, limit_s: float) -> str:
    if status is None:
        return f"gave no sign for {limit_s:g} s"
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
