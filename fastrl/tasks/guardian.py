"""What a verifier worker leaves behind: a process beside each worker that ends whatever the reward has started.

A reward may start processes (a code runner, a server, a pool of its own), and a worker is killed when it takes too
long. Its guardian is forked before the reward is loaded, watches which processes descend from the worker, and when the
worker ends, or the trainer does, kills its process group and every descendant seen. What hides within a quarter of a
second, in a session of its own, before its worker ends is not found. Descendants are read from /proc; elsewhere the
process group is all that is known.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

INTERVAL_S = 0.25


def guard(trainer_pid: int) -> None:
    """Make this process the leader of a session of its own, with a guardian. Call it before threads are started."""
    worker_pid = os.getpid()
    os.setsid()
    if os.fork():
        return
    try:
        _watch(worker_pid, trainer_pid)
    finally:
        os._exit(0)


def _watch(worker_pid: int, trainer_pid: int) -> None:
    os.setsid()
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))  # the pool's pipes and the terminal's are not this process's to hold
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)
    descendants: dict[int, str] = {}
    while os.getppid() == worker_pid and _is_alive(trainer_pid):
        descendants = {p: _started(p) for p in _descendants(worker_pid)} | {
            p: start for p, start in descendants.items() if start and _started(p) == start
        }
        time.sleep(INTERVAL_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker_pid, signal.SIGKILL)
    for pid, start in descendants.items():
        if start and _started(pid) == start:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _descendants(pid: int) -> list[int]:
    """Children of all threads, and theirs, without this process."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split() if int(child) != os.getpid()]
    return found + [p for child in found for p in _descendants(child)]


def _started(pid: int) -> str:
    """When the process started, which tells it from a later one of the same number; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
