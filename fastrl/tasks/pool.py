"""Verifier workers: model output is untrusted, so rewards run in processes that can be killed and replaced.

Completions travel in chunks, because a process hop per completion would cost more than most verifiers. A chunk that
hangs or dies is run again one completion at a time, so that exactly the guilty one is blamed:

    hangs -> 0 "timeout"      MemoryError in a fresh worker -> 0 "memory"      RecursionError -> 0 "recursion"
    SIGSEGV and the like -> 0 "crashed"      over 1 MB -> 0 "too long"      lone surrogates -> 0 "invalid unicode"

What is no completion's doing (a worker killed from outside, an import error, an exception out of the reward, a returned
None or NaN) gives no reward at all: `Verdict.is_fault`. More than 1 % of these, in all or in one batch, end the run
with a VerifierError. So do completions that hit limits (timeout, memory, crashed) when they are more than 3 % of a
batch and more than four of it, or all of it: one hostile completion hangs a verifier, a broken verifier hangs on many.

pebble's pool kills and replaces workers. Its workers share one pipe and its locks, so a kill at the wrong moment can
stall or break the whole pool; `VerifierPool` notices (no result for longer than any chunk may take) and starts another.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pebble import ProcessExpired, ProcessPool

from fastrl.watchdog import alive

from .problem import Prompt, Reward
from .worker import WORN_STATUS, Verdict, WornOut, described, fault, score_chunk, start_worker

Item = tuple[Prompt, str, dict]  # prompt, completion, row

MAX_BYTES = 1_000_000  # of a completion, as UTF-8
CHUNK_SECONDS = 0.25  # what a chunk should take; its size follows the measured time per completion
FIRST_CHUNK, MAX_CHUNK = 8, 64
MAX_CHUNK_BYTES = 1_000_000
CHUNKS_PER_WORKER = 1000  # then the worker is replaced: bounds what a leaking verifier holds
MAX_FAULT_SHARE = 0.01
MIN_SCORED = 200  # the share is of at least this many completions: two faults never end a run
MAX_LIMIT_SHARE = 0.03  # of a batch may hit limits, …
MIN_LIMIT_HITS = 4  # … or so many, if not all
START_GRACE_S = 120.0  # for a pool's first result: imports on a cold disk
STALL_GRACE_S = 10.0  # on top of the timeout, for later results; a stall suspected wrongly costs a restart
MAX_RESTARTS = 3  # in a row without one result
MAX_DEATHS = 3  # of a worker alone with one completion, before that is a fault

LIMIT_REASONS = ("timeout", "memory", "crashed")
POOL_REASONS = (*LIMIT_REASONS, "recursion", "too long", "invalid unicode")
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class VerifierError(RuntimeError):
    """The verifier itself is broken; no completion is to blame."""


class VerifierPool:
    """Scores completions in worker processes; a context manager. Not to be shared between threads.

    reward: picklable, `reward(prompt, completion, **row) -> float | Score`.
    timeout_s: wall-clock seconds that one completion may take.
    memory_mb: address space of a worker, in MiB.
    num_workers: processes.

    Counts since the start: `num_scored`, `num_faults`, `num_restarts` (of the whole pool) and `num_by_reason` for the
    reasons that the pool itself gives (timeout, memory, recursion, crashed, too long, invalid unicode).
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
        self.num_by_reason: Counter[str] = Counter()
        self._initargs = (pickle.dumps(reward), memory_mb, 2 * timeout_s + 10.0, os.getpid())
        self._seconds_per_item = CHUNK_SECONDS / FIRST_CHUNK
        self._has_answered = self._is_closed = False
        self._pool = self._new_pool()

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        self._is_closed = True
        _end(self._pool).join(timeout=10.0)

    @property
    def num_timeouts(self) -> int:
        return self.num_by_reason["timeout"]

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts of (prompt, completion, row) triples, in order.

        Never hangs: 64 hanging completions and 2 workers take about 64 / 2 · timeout_s.
        Raises VerifierError when more than 1 % of all completions so far were faults, when a few percent of these hit
        limits, or when no worker stays alive; as soon as that is clear.
        """
        batch = _Batch(items)
        restarts = 0
        while not batch.is_settled:
            self._dispatch(batch)
            grace_s = STALL_GRACE_S if self._has_answered else START_GRACE_S
            done, _ = wait(batch.running, timeout=self.timeout_s + grace_s, return_when=FIRST_COMPLETED)
            alive()  # no result is not a hang: the pool has limits of its own
            has_progress = False
            for future in done:
                has_progress |= self._collect(batch, future, batch.running.pop(future))
            if has_progress:
                restarts = 0
            else:
                restarts += 1
                if restarts > MAX_RESTARTS:
                    raise VerifierError(
                        f"verifier workers gave no result {restarts} times in a row; "
                        "can they start at all, with this memory limit?"
                    )
                self._restart(batch)
            self._check_faults(batch, self.num_scored + len(items))
            self._check_limits(batch)
        self.num_scored += len(items)
        self.num_faults += batch.num_faults
        self.num_by_reason.update(v.reason for v in batch.verdicts if v.reason in POOL_REASONS)
        return batch.verdicts

    def _dispatch(self, batch: "_Batch") -> None:
        if not self._pool.active:  # an idle worker was killed since the last batch
            self._restart(batch)
        size = max(1, min(MAX_CHUNK, int(CHUNK_SECONDS / self._seconds_per_item)))
        while len(batch.running) < 2 * self.num_workers and (indices := batch.next_chunk(size)):
            payload = pickle.dumps([batch.items[i] for i in indices])
            try:
                future = self._pool.schedule(score_chunk, args=(payload,), timeout=self.timeout_s)
            except RuntimeError:  # the pool broke a moment ago
                batch.put_back(indices)
                return
            batch.running[future] = indices

    def _collect(self, batch: "_Batch", future: Future, indices: list[int]) -> bool:
        """Take in one finished chunk; False when it says nothing about its completions."""
        try:
            seconds, verdicts = future.result()
        except BrokenExecutor:
            batch.put_back(indices)
            return False
        except WornOut:
            batch.put_back(indices, alone=True)
            return True
        except Exception as error:  # what the pool reports: timeout, death of the worker, an unpicklable result
            if isinstance(error, ProcessExpired) and error.exitcode == WORN_STATUS:
                batch.put_back(indices)
                return True
            verdict = _blame(batch, indices[0], error) if len(indices) == 1 else None
            if verdict is None:
                batch.put_back(indices, alone=True)
            else:
                batch.settle(indices, [verdict])
            return True
        self._has_answered = True
        self._seconds_per_item = 0.5 * self._seconds_per_item + 0.5 * max(seconds / len(indices), 1e-6)
        batch.settle(indices, verdicts)
        return True

    def _check_faults(self, batch: "_Batch", num_scored: int) -> None:
        """Of all completions so far, and of this batch alone: a verifier may break after a million good verdicts."""
        counts = {num_scored: self.num_faults + batch.num_faults, len(batch.items): batch.num_faults}
        for num_completions, num_faults in counts.items():
            if num_faults > MAX_FAULT_SHARE * max(num_completions, MIN_SCORED):
                raise VerifierError(
                    f"the verifier itself failed on {num_faults} of {num_completions} completions (more than "
                    f"{MAX_FAULT_SHARE:.0%}); the last time: {batch.last_fault}"
                )

    def _check_limits(self, batch: "_Batch") -> None:
        """Of this batch: limits that many completions hit are too tight, or the verifier is slow or broken."""
        hits, num = batch.num_by_reason, len(batch.items)
        most = min(max(MAX_LIMIT_SHARE * num, MIN_LIMIT_HITS), max(num - 1, 1))
        if hits.total() > most:
            counts = ", ".join(f"{reason} {hits[reason]}" for reason in LIMIT_REASONS if hits[reason])
            raise VerifierError(
                f"the verifier hit its limits on {hits.total()} of {num} completions ({counts}), too many for hostile "
                f"completions: it is slow or broken, or needs more than task.timeout_s = {self.timeout_s:g} or "
                f"task.memory_mb = {self._initargs[1]}"
            )

    def _restart(self, batch: "_Batch") -> None:
        if self._is_closed:
            raise VerifierError("the verifier pool is closed")
        self.num_restarts += 1
        self._has_answered = False
        _end(self._pool)
        self._pool = self._new_pool()
        for indices in batch.running.values():
            batch.put_back(indices)
        batch.running.clear()

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.num_workers,
            max_tasks=CHUNKS_PER_WORKER,
            initializer=start_worker,
            initargs=self._initargs,
            context=_WorkerContext(),
        )


class _Batch:
    """The completions of one call of `score`: which wait, which must run alone, which run, and what became of them."""

    def __init__(self, items: Sequence[Item]):
        self.items = items
        self.verdicts: list[Any] = [_refuse(completion) for _, completion, _ in items]
        self.waiting = deque(i for i, verdict in enumerate(self.verdicts) if verdict is None)
        self.waiting_alone: deque[int] = deque()
        self.running: dict[Future, list[int]] = {}
        self.num_deaths: Counter[int] = Counter()
        self.num_faults = 0
        self.num_by_reason: Counter[str] = Counter()  # of LIMIT_REASONS
        self.last_fault = ""

    @property
    def is_settled(self) -> bool:
        return not (self.waiting or self.waiting_alone or self.running)

    def next_chunk(self, size: int) -> list[int]:
        """Up to `size` completions that may share a chunk; else one that must run alone; else nothing."""
        indices: list[int] = []
        num_bytes = 0
        while self.waiting and len(indices) < size and num_bytes < MAX_CHUNK_BYTES:
            indices.append(self.waiting.popleft())
            num_bytes += len(self.items[indices[-1]][1])
        if not indices and self.waiting_alone:
            indices.append(self.waiting_alone.popleft())
        return indices

    def put_back(self, indices: list[int], alone: bool = False) -> None:
        if alone or len(indices) == 1:
            self.waiting_alone.extend(indices)
        else:
            self.waiting.extend(indices)

    def settle(self, indices: list[int], verdicts: list[Verdict]) -> None:
        for index, verdict in zip(indices, verdicts, strict=True):
            self.verdicts[index] = verdict
            self.num_by_reason[verdict.reason] += verdict.reason in LIMIT_REASONS and verdict.reward == 0.0
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


def _blame(batch: _Batch, index: int, error: Exception) -> Verdict | None:
    """The verdict for a completion that was alone with a failing worker; None to try once more."""
    if isinstance(error, TimeoutError):
        return Verdict(0.0, "timeout")
    if isinstance(error, MemoryError):
        return Verdict(0.0, "memory")
    if not isinstance(error, ProcessExpired):
        return fault(described(error))
    signal_number = -error.exitcode
    if signal_number == signal.SIGALRM:  # the worker's own backstop was first
        return Verdict(0.0, "timeout")
    if signal_number in _CRASHES:
        return Verdict(0.0, "crashed")
    batch.num_deaths[index] += 1
    if batch.num_deaths[index] < MAX_DEATHS:
        return None
    how = f"was killed by signal {signal_number}" if signal_number > 0 else f"exited with status {error.exitcode}"
    return fault(f"the worker {how} {MAX_DEATHS} times on this completion")


def _end(pool: ProcessPool) -> threading.Thread:
    """Kill the pool's workers from a thread of its own: a stalled pool may take seconds to let go."""

    def stop() -> None:
        pool.stop()
        with contextlib.suppress(RuntimeError, OSError):  # raised by a pool that is already broken
            pool.join()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    return thread


class _WorkerProcess(SpawnProcess):
    """A spawned process that does not import the parent's main script.

    That script may import torch, and without an `if __name__ == "__main__"` guard it would start the training again.
    """

    def start(self) -> None:
        # The child inherits the mask: Ctrl-C is the trainer's to handle, also while a worker is still starting.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _hidden_main():
                super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _WorkerContext(SpawnContext):
    Process = _WorkerProcess


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """multiprocessing finds the main script by these two attributes of its module; workers need neither."""
    main = sys.modules["__main__"].__dict__
    with _main_lock:
        kept = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        main["__spec__"] = None
        main.pop("__file__", None)
        try:
            yield
        finally:
            main.update(kept)


_main_lock = threading.Lock()
