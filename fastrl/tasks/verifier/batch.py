"""The work of one `VerifierPool.score`: which calls of the reward wait, and what became of their completions."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby

from ..problem import Prompt, content_id
from .verdict import Verdict, fault
from .worker import Call

Item = tuple[Prompt, str, dict]  # prompt, completion, row

MAX_BYTES = 1_000_000  # of a completion, as UTF-8
MAX_CHUNK_BYTES = 1_000_000
MAX_DEATHS = 3  # of a worker on one call, before that is a fault


class Batch:
    """Calls are known by their index. `suspects` have hit a limit or lost their worker: they run again, each alone in a
    fresh worker.

    judges_groups: neighbouring items of the same prompt and row are one call; else every item is a call of its own.
    A completion that no worker should see gets its verdict here and belongs to no group.
    """

    def __init__(self, items: Sequence[Item], judges_groups: bool = False):
        self.verdicts: list[Verdict | None] = [_refuse(completion) for _, completion, _ in items]
        accepted = [position for position, verdict in enumerate(self.verdicts) if verdict is None]
        self._positions = _groups(items, accepted) if judges_groups else [[position] for position in accepted]
        self.calls = [_call([items[position] for position in group]) for group in self._positions]
        self.size = len(items) - len(accepted) + len(self.calls)
        self.waiting = deque(range(len(self.calls)))
        self.suspects: deque[int] = deque()
        self.num_open = len(self.calls)
        self.limits: dict[int, str] = {}  # the first that a call has hit
        self.num_deaths: Counter[int] = Counter()
        self.num_faults = 0
        self.last_fault = ""

    @property
    def is_settled(self) -> bool:
        return not self.num_open

    def next_chunk(self, size: int) -> list[int]:
        """Up to `size` calls."""
        indices: list[int] = []
        num_bytes = 0
        while self.waiting and len(indices) < size and num_bytes < MAX_CHUNK_BYTES:
            indices.append(self.waiting.popleft())
            num_bytes += sum(map(len, self.calls[indices[-1]].completions))
        return indices

    def next_suspect(self) -> list[int]:
        """One call, for a fresh worker."""
        return [self.suspects.popleft()] if self.suspects else []

    def put_back(self, indices: list[int]) -> None:
        for index in indices:
            is_suspect = index in self.limits or index in self.num_deaths
            (self.suspects if is_suspect else self.waiting).append(index)

    def hit(self, index: int, limit: str) -> None:
        """Note a limit that a call has hit. The second time, in a fresh worker, it is the verdict."""
        if index in self.limits:
            self._settle_alike(index, Verdict(0.0, limit))
        else:
            self.limits[index] = limit
            self.suspects.append(index)

    def die(self, index: int, how: str) -> None:
        """Note that a worker on this call ended by itself, or was killed by somebody unknown."""
        self.num_deaths[index] += 1
        if self.num_deaths[index] < MAX_DEATHS:
            self.suspects.append(index)
        else:
            what = "completion" if len(self._positions[index]) == 1 else "group"
            self._settle_alike(index, fault(f"the worker {how} {MAX_DEATHS} times on this {what}"))

    def settle(self, index: int, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts of a call, one for each of its completions."""
        for position, verdict in zip(self._positions[index], verdicts, strict=True):
            self.verdicts[position] = verdict
        self.num_open -= 1
        if verdicts[0].is_fault:
            self.num_faults += 1
            self.last_fault = verdicts[0].reason

    def _settle_alike(self, index: int, verdict: Verdict) -> None:
        self.settle(index, [verdict] * len(self._positions[index]))


def _refuse(completion: str) -> Verdict | None:
    """The verdict for a completion that no worker should see, or None."""
    try:
        num_bytes = len(completion) if len(completion) > MAX_BYTES else len(completion.encode())
    except UnicodeEncodeError:
        return Verdict(0.0, "invalid unicode")
    return Verdict(0.0, "too long") if num_bytes > MAX_BYTES else None


def _groups(items: Sequence[Item], positions: list[int]) -> list[list[int]]:
    """`positions`, cut where the prompt or the row changes."""
    return [list(group) for _, group in groupby(positions, lambda i: content_id(items[i][0], items[i][2]))]


def _call(items: list[Item]) -> Call:
    prompt, _, row = items[0]
    return Call(prompt, [completion for _, completion, _ in items], row)
