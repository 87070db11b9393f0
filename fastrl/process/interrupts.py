"""Ctrl-C and SIGTERM: both stop a run at once, but never in the middle of a weight update."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, which waits for the end of a `deferred()` block.

    A context manager that restores the old handlers. Off the main thread it does nothing.
    is_cooperative: raise nothing, only set `is_pending`, because several ranks must stop together.
    """

    def __init__(self, *, is_cooperative: bool = False) -> None:
        self._is_deferred = self._is_cooperative = is_cooperative
        self.is_pending = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_deferred:
            self.is_pending = True
        else:
            raise KeyboardInterrupt(signal.Signals(number).name)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that no signal interrupts: the KeyboardInterrupt comes right after it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = self._is_cooperative
        if self.is_pending and not self._is_cooperative:
            self.is_pending = False
            raise KeyboardInterrupt
