"""A verifier worker as the pool sees it: a process that takes chunks of calls and can be ended at any time."""

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

from .verdict import Verdict
from .worker import Call, Message, Orders, Unit

IO_S = 10.0  # for one chunk into, or one message out of a worker that may be stopped or dying
END_S = 5.0  # for the keeper to end the worker and what it started

_PROGRAM = (
    "import sys; sys.path[:] = {path}; from fastrl.tasks.verifier.keeper import keep; keep({lifeline}, {channel})"
)


class WorkerProcess:
    """Starts at once, in the background.

    indices: the calls of its chunk without verdicts yet; the first is the one it is at.
    deadline: until when it must send its next message, in monotonic seconds.
    unit: what a call of its reward judges, once it is ready; is_concurrent: calls of a chunk run at the same time;
    broken: why the reward cannot be loaded, if so.

    It does not import the trainer's main script, has a session of its own and no standard input: Ctrl-C and the
    terminal are the trainer's.
    """

    def __init__(self, orders: Orders, start_s: float):
        self.lifeline, their_lifeline = _connection_pair()
        self.channel, their_channel = _connection_pair()
        ends = {"lifeline": their_lifeline.fileno(), "channel": their_channel.fileno()}
        program = _PROGRAM.format(path=ascii(sys.path), **ends)
        self._keeper = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=tuple(ends.values()),
            start_new_session=True,
        )
        their_lifeline.close()
        their_channel.close()
        self.pid: int | None = None  # of the worker, when it is ready
        self.unit: Unit = "completion"
        self.is_concurrent = False
        self.broken = ""
        self.indices: list[int] = []
        self._limits_s: list[float] = []  # of each of them
        self.num_chunks = 0
        self.last_s = 0.0  # when its last verdicts came, or its chunk went out
        self.is_grown = self.has_gone = False
        self.deadline = time.monotonic() + start_s
        self._ending = threading.Lock()
        with contextlib.suppress(OSError):  # a keeper that died at once is found when it is waited for
            self.channel.send_bytes(pickle.dumps(orders))

    @property
    def is_ready(self) -> bool:
        return self.pid is not None

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.indices

    @property
    def is_fresh(self) -> bool:
        return self.num_chunks == 0

    @property
    def is_late(self) -> bool:
        return not self.is_idle and time.monotonic() > self.deadline

    def give(self, indices: list[int], calls: list[Call], timeout_s: float) -> None:
        """Hand over a chunk; timeout_s: for each completion or turn. OSError when the worker does not take it."""
        self.channel.send_bytes(pickle.dumps(calls))
        self.indices = indices
        self._limits_s = [timeout_s * max(len(call.completions), 1) for call in calls]
        self.num_chunks += 1
        self.last_s = time.monotonic()
        self.deadline = self.last_s + self._limits_s[0]

    def take(self) -> list[tuple[int, tuple[Verdict, ...]]]:
        """Verdicts that have come, with the index of their call; `has_gone` says that no more can come."""
        found = []
        try:
            self.has_gone = self.lifeline.poll()
            while self.channel.poll():
                message: Message = self.channel.recv()
                if message.verdicts:
                    found.append((self.indices.pop(0), message.verdicts))
                    self.is_grown = message.is_grown
                    del self._limits_s[0]
                else:
                    self.pid, self.unit, self.is_concurrent = message.pid, message.unit, message.is_concurrent
                    self.broken = message.broken
                self.deadline = time.monotonic() + sum(self._limits_s[:1])
        except (OSError, EOFError):
            self.has_gone = True
        return found

    def end(self, patience_s: float = 0.0) -> int | None:
        """Kill the worker and what it started. Several threads may call it at once.

        patience_s: how long to wait for the keeper's report on a worker that has just gone.
        Returns how the worker had ended before: its exit status or negative signal; None if it had not.
        """
        with self._ending:
            return self._end(patience_s)

    def _end(self, patience_s: float) -> int | None:
        status = None
        with contextlib.suppress(OSError, EOFError):
            if not self.lifeline.poll(patience_s):
                self.lifeline.send_bytes(b"end")
            if self.lifeline.poll(END_S):
                status = self.lifeline.recv()
        if self._keeper.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # a keeper that is stopped, or was killed
                os.killpg(self._keeper.pid, signal.SIGKILL)
        self._keeper.wait()
        return status


def _connection_pair() -> tuple[Connection, Connection]:
    """Two ends whose sends and receives give up with an OSError after IO_S."""
    pair = socket.socketpair()
    limit = struct.pack("ll", int(IO_S), int(IO_S % 1 * 1e6))
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    return Connection(pair[0].detach()), Connection(pair[1].detach())
