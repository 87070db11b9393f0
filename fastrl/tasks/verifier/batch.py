"""The work of one `VerifierPool.score`: which calls of the reward wait, and what became of their completions."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby
from typing import Self

from ..problem import Prompt, content_id
from .verdict import Verdict, fault
from .worker import Call, Unit

Item = tuple[Prompt, str, dict]  # prompt, completion, row

MAX_BYTES = 1_000_000  # of a completion, as UTF-8
MAX_CHUNK_BYTES = 1_000_000
MAX_DEATHS = 3  # of a worker on one call, before that is a fault


class Batch:
    """Calls are known by their index. `suspects` have hit a limit or lost their worker: they run again, each alone in a
    fresh worker.

    unit: what a call judges. verdicts: those that are known. positions: of the verdicts of each call.
    """

    def __init__(
        self, unit: Unit, calls: list[Call], verdicts: list[Verdict | None], positions: Sequence[Sequence[int]]
    ):
        self.unit, self.calls, self.verdicts, self._positions = unit, calls, verdicts, positions
        self.size = len(calls) + sum(verdict is not None for verdict in verdicts)
        self.waiting = deque(range(len(self.calls)))
        self.suspects: deque[int] = deque()
        self.num_open = len(self.calls)
        self.limits: dict[int, str] = {}  # the first that a call has hit
        self.num_deaths: Counter[int] = Counter()
        self.num_faults = 0
        self.last_fault = ""

    @classmethod
    def of_items(cls, items: Sequence[Item], unit: Unit) -> Self:
        """Groups: neighbouring items of the same prompt and row are one call; else every item is a call of its own.

        A completion that no worker should see gets its verdict here and belongs to no group.
        """
        verdicts = [_refuse(completion) for _, completion, _ in items]
        accepted = [position for position, verdict in enumerate(verdicts) if verdict is None]
        positions = _groups(items, accepted) if unit == "group" else [[position] for position in accepted]
        return cls(unit, [_call([items[position] for position in group]) for group in positions], verdicts, positions)

    @classmethod
    def of_conversations(cls, calls: Sequence[Call]) -> Self:
        """Every call is a conversation, with one verdict."""
        return cls("conversation", list(calls), [None] * len(calls), [[position] for position in range(len(calls))])

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
            self.blame(index, limit)
        else:
            self.limits[index] = limit
            self.suspects.append(index)

    def die(self, index: int, how: str) -> None:
        """Note that a worker on this call ended by itself, or was killed by somebody unknown."""
        self.num_deaths[index] += 1
        if self.num_deaths[index] < MAX_DEATHS:
            self.suspects.append(index)
        else:
            what = "completion" if self.unit == "group" and len(self._positions[index]) == 1 else self.unit
            self._settle_alike(index, fault(f"the worker {how} {MAX_DEATHS} times on this {what}"))

    def blame(self, index: int, limit: str) -> None:
        """The limit is the verdict: 0 for completions, whose doing it is. An environment did it by itself: a fault."""
        self.limits[index] = limit
        self._settle_alike(index, fault(limit) if self.unit == "conversation" else Verdict(0.0, limit))

    def settle(self, index: int, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts of a call, one for each of its completions."""
        for position, verdict in zip(self._positions[index], verdicts, strict=True):
            self.verdicts[position] = verdict
        self.num_open -= 1
        if verdicts[0].is_fault and verdicts[0].reason != self.limits.get(index):
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
