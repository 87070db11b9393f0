"""A thread that writes what steps leave behind, in their order, while training goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class WriterThread:
    """Runs actions on data that nobody changes any more, one after the other, in the order in which they came.

    After an action that failed no other is run: what is on disk is the beginning of what was handed over. Its error is
    raised by every later call but `close`; `error` holds it. limit: actions that may be unfinished; the next one waits
    for the oldest.
    """

    def __init__(self, name: str, limit: int):
        self.limit = limit
        self._pool = ThreadPoolExecutor(1, name)
        self._unfinished: deque[Future] = deque()
        self.error: Exception | None = None

    def write(self, action: Callable[[], object]) -> None:
        """Run the action later."""
        self._take_back(self.limit - 1)
        self._unfinished.append(self._pool.submit(self._run, action))

    def check(self) -> None:
        """Raise the error of an action that has failed, without waiting for any."""
        self._take_back(self.limit)

    def wait(self) -> None:
        """Return when all actions are done."""
        self._take_back(0)

    def fence(self) -> Callable[[], object]:
        """A function, for any thread, that returns when all actions up to now are done, or raises their error."""
        return self._pool.submit(self._run, lambda: None).result

    def close(self) -> None:
        """End the thread when all actions are done. Only the other methods report errors."""
        self._pool.shutdown()

    def _run(self, action: Callable[[], object]) -> None:
        if self.error:
            raise self.error
        try:
            action()
        except Exception as error:
            self.error = error
            raise

    def _take_back(self, most: int) -> None:
        """Let go of finished actions until at most `most` are left. One that failed stays, and so does its error."""
        while self._unfinished and (len(self._unfinished) > most or self._unfinished[0].done()):
            self._unfinished[0].result()  # an interrupt here leaves it unfinished
            self._unfinished.popleft()
