"""Several rewards of one completion: weighed, added up, and each remembered for a metric of its own.

A reward that returns None does not apply to that completion and is left out of its sum. One with the weight 0 is asked,
for its metric, and adds nothing; one that is not named is not asked. Any of them may judge groups or be awaited: all
awaited ones of a completion wait together.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import isawaitable
from typing import Any

from .awaited import then, together
from .problem import Prompt, Score, Weighted
from .signatures import is_async, is_environment, judges_groups
from .verifier.verdict import Verdict, describe, shown, verdict_of

NOTHING = Verdict(math.nan, "")


@dataclass(frozen=True)
class SummedReward:
    """The reward that is the weighted sum of others. Reason and answer are those of the first."""

    summed: tuple[Weighted, ...]

    def prepare(self) -> None:
        """What each of them wants to have done before. TypeError for an environment."""
        for one in self.summed:
            getattr(one.reward, "prepare", lambda: None)()
            if is_environment(getattr(one.reward, "__wrapped__", one.reward)):
                raise TypeError(
                    f"{one.name} is an environment: it scores conversations, which task.rewards cannot add to"
                )

    @property
    def is_async(self) -> bool:
        return any(is_async(one.reward) for one in self.summed)

    @cached_property
    def __wrapped__(self) -> Callable:
        """It judges groups if one of them does."""
        return self.of_group if any(judges_groups(one.reward) for one in self.summed) else self.of_completion

    def __call__(self, /, *args, **row):
        return self.__wrapped__(*args, **row)

    def of_completion(self, prompt: Prompt, completion: str, /, **row) -> Score:
        values = [_asked(one, prompt, completion, row) for one in self.summed]
        return then(together(values), lambda found: self._sum(found, completion))

    def of_group(self, prompt: Prompt, completions: list[str], /, **row) -> list[Score]:
        values = [self._of_all(one, prompt, completions, row) for one in self.summed]
        return then(together(values), lambda found: self._sums(found, completions))

    def _of_all(self, one: Weighted, prompt: Prompt, completions: list[str], row: dict) -> Any:
        if judges_groups(one.reward):
            return _asked(one, prompt, list(completions), row)
        return together([_asked(one, prompt, completion, row) for completion in completions])

    def _sums(self, found: Sequence[Any], completions: list[str]) -> list[Score]:
        columns = [values.tolist() if hasattr(values, "tolist") else values for values in found]
        for one, values in zip(self.summed, columns, strict=True):
            if not isinstance(values, list | tuple) or len(values) != len(completions):
                found = f"{len(values)} numbers" if isinstance(values, list | tuple) else shown(values)
                raise ValueError(
                    f"reward {one.name} returned {found} for {len(completions)} completions; expected a list, one for "
                    "each"
                )
        return [self._sum(values, text) for *values, text in zip(*columns, completions, strict=True)]

    def _sum(self, values: Sequence[Any], completion: str) -> Score:
        """ValueError for what is no number, and where no reward applies."""
        verdicts = [NOTHING if value is None else verdict_of(value, completion) for value in values]
        for one, verdict in zip(self.summed, verdicts, strict=True):
            if verdict.is_fault:
                raise ValueError(f"reward {one.name} {verdict.reason}")
        parts = tuple(verdict.reward for verdict in verdicts)
        pairs = [(one.weight, part) for one, part in zip(self.summed, parts, strict=True) if not math.isnan(part)]
        if not pairs:
            raise ValueError("no reward applies to the completion: all returned None")
        first = verdicts[0]
        return Score(sum(weight * part for weight, part in pairs), first.reason, first.answer, parts=parts)


def _asked(one: Weighted, prompt: Prompt, what: str | list[str], row: dict) -> Any:
    """What a reward returns, or an awaitable of it; what it raises names it."""
    with _named(one.name):
        value = one.reward(prompt, what, **row)

    async def later() -> Any:
        with _named(one.name):
            return await value

    return later() if isawaitable(value) else value


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RecursionError):
        raise  # the pool's to name
    except Exception as error:
        raise ValueError(f"reward {name}: {describe(error)}") from error
