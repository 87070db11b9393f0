"""The watchdog: a run that stops making progress ends with the stacks of all threads, not with silence.

Progress is a call of `alive`: at every phase of a step, every chunk of work inside one, every checkpoint. After
`limit_s` without one the process says which phase hung, prints the stacks and exits with status 1; torchrun then ends
the other processes. There is no clean-up: a thread that hangs inside a driver cannot be unwound.

Two mechanisms, because a thread may hang with or without Python's lock. A daemon thread watches the calls. It also
keeps postponing faulthandler's timer, whose own C thread needs no lock: when the daemon cannot run any more, the timer
prints the stacks (without the phase) and exits with status 1.

Left out: time while the whole process is stopped (SIGSTOP) counts as time without progress.
"""

import faulthandler
import os
import threading
import time

STDERR = 2  # the descriptor: sys.stderr may be a notebook's or a test's

_active: "Watchdog | None" = None


def alive(phase: str = "") -> None:
    """Tell the process's watchdog, if there is one, that work goes on; with a name, that another phase begins."""
    if _active is not None:
        _active.note_progress(phase)


class Watchdog:
    """Watches this process from the first `alive` inside its block to the end of it. limit_s 0: never acts.

    One a process at a time: an inner one takes over until its end.
    """

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self.phase = ""
        self._last = 0.0  # monotonic seconds; 0: not armed yet
        self._is_over = threading.Event()

    def __enter__(self) -> "Watchdog":
        global _active
        self._outer, _active = _active, self
        if self.limit_s:
            self._postpone_timer()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        global _active
        _active = self._outer
        if self.limit_s:
            self._is_over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def note_progress(self, phase: str) -> None:
        self.phase = phase or self.phase
        self._last = time.monotonic()

    def _watch(self) -> None:
        """Look often enough to act within 1.25 limits; the timer gets a whole limit beyond that."""
        interval_s = min(self.limit_s / 4, 10.0)
        while not self._is_over.wait(interval_s):
            self._postpone_timer()
            silent_s = time.monotonic() - self._last
            if self._last and silent_s > self.limit_s:
                self._end_process(silent_s)

    def _postpone_timer(self) -> None:
        faulthandler.dump_traceback_later(2 * self.limit_s, exit=True, file=STDERR)

    def _end_process(self, silent_s: float) -> None:
        message = (
            f"error: the run hangs: no progress for {silent_s:.0f} s in phase '{self.phase}' "
            f"(run.watchdog_s = {self.limit_s:g}). The last checkpoint stays; continue with --resume. Stacks:\n"
        )
        os.write(STDERR, message.encode())
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        os._exit(1)
