"""The keeper of a verifier worker: a small process that starts the worker and outlives everything the worker starts.

    trainer ── keeper (own session) ── worker ── whatever the reward starts

The keeper waits until the worker ends, the trainer says a word, or the trainer ends (SIGKILL included). Then it kills
the worker and all its descendants, tells the trainer how the worker had ended, and exits. On Linux it is their "child
subreaper": daemons and orphans become its children, so none is missed. Elsewhere it kills its process group.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from multiprocessing.connection import Connection

from .worker import work

POLL_S = 1.0  # between looks whether the trainer still lives, should somebody else hold its end of our lifeline
KILL_S = 2.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def keep(lifeline: int, channel: int) -> None:
    """Run a worker; never returns. Both descriptors are sockets to the trainer: `channel` is the worker's."""
    trainer = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _set_process_option(_PR_SET_CHILD_SUBREAPER, 1)
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    worker = os.fork()
    if not worker:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (lifeline, wakes, wake):
            os.close(descriptor)
        _set_process_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
        work(Connection(channel))
    os.close(channel)
    status = _wait(worker, trainer, lifeline, wakes)
    _kill_descendants()
    with contextlib.suppress(OSError):  # the trainer is gone
        Connection(lifeline).send(status)
    os._exit(0)


def _wait(worker: int, trainer: int, lifeline: int, wakes: int) -> int | None:
    """Wait for the worker. Its exit status (negative: a signal) if it ends by itself; None if it has to be ended."""
    while os.getppid() == trainer:
        while True:  # orphans are ours to bury, too
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == worker:
                return os.waitstatus_to_exitcode(status)
            if not pid:
                break
        ready, _, _ = select.select([lifeline, wakes], [], [], POLL_S)
        if lifeline in ready or (wakes in ready and signal.SIGTERM in os.read(wakes, 4096)):
            return None
    return None


def _kill_descendants() -> None:
    """Kill until none is left: a subreaper without children has no descendants."""
    if not sys.platform.startswith("linux"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + KILL_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.002)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def _set_process_option(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
