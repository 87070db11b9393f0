"""Credit by turns: the turns of a batch of conversations, each compared with its likes, and spread over its tokens.

Legend: R rollouts, N completion tokens, J turns of the model in all rollouts, one behind the other.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fastrl.learning.objectives import Grpo
from fastrl.rollouts import Rollouts


@dataclass(frozen=True)
class Turns:
    """The turns of a batch. rollouts_J: whose each is. numbers_J: from 0. starts_J, ends_J: within its completion."""

    batch: Rollouts
    rollouts_J: np.ndarray
    numbers_J: np.ndarray
    starts_J: np.ndarray
    ends_J: np.ndarray

    @classmethod
    def of(cls, batch: Rollouts) -> Self:
        """ValueError for a batch that holds no conversations."""
        if batch.turns_N is None:
            raise ValueError("a signal that credits turns needs a task with an environment (docs/extend.md)")
        rows = [(i, j, *span) for i in range(len(batch)) for j, span in enumerate(batch.turns(i))]
        return cls(batch, *np.array(rows, dtype=np.int64).reshape(-1, 4).T)

    @property
    def is_last_J(self) -> np.ndarray:
        """(J,) bool: the last turn of its conversation."""
        return np.append(self.numbers_J[1:] == 0, True)[: len(self.numbers_J)]

    @property
    def groups_J(self) -> np.ndarray:
        return self.batch.groups_R[self.rollouts_J]

    def first(self, column_N: np.ndarray) -> np.ndarray:
        """(J,) of a column, what stands at each turn's first token."""
        return column_N[self.batch.starts_R[self.rollouts_J] + self.starts_J]

    def spread(self, values_J: np.ndarray) -> np.ndarray:
        """(N,): each turn's value for all of its tokens, 0 for replies."""
        values_N = np.zeros(self.batch.num_tokens)
        for value, start, length in zip(
            values_J, self.batch.starts_R[self.rollouts_J] + self.starts_J, self.ends_J - self.starts_J, strict=True
        ):
            values_N[start : start + length] = value
        return values_N


def compared(values_J: np.ndarray, keys: Sequence[Hashable]) -> np.ndarray:
    """(J,): (value − mean) / (std + 1e-6) among those of the same key, as in GRPO; 0 for a lone one and for NaN."""
    places: dict[Hashable, list[int]] = {}
    for j, key in enumerate(keys):
        places.setdefault(key, []).append(j)
    rewards_PG = np.full((len(places), max(map(len, places.values()), default=0)), np.nan)
    for row, members in zip(rewards_PG, places.values(), strict=True):
        row[: len(members)] = values_J[members]
    found_J = np.zeros(len(values_J))
    advantages_PG = Grpo()(rewards_PG, np.zeros(rewards_PG.shape, bool)) if len(values_J) else rewards_PG
    for row, members in zip(advantages_PG, places.values(), strict=True):
        found_J[members] = row[: len(members)]
    return found_J
