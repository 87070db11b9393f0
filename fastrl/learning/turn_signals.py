"""Signals of conversations: one credit a turn, from what its reply told the policy or from what the turn is for.

    delta-belief        what a turn of a conversation adds to log π(truth|history), compared with turns of the same
                        number                                              ΔBelief-RL, arXiv:2602.12342
    rlvmr               α·(advantage of the conversation) + (1 − α)·(advantage of the turn among those of its tag)
                                                                            RLVMR, arXiv:2507.22844

Legend: R rollouts, N completion tokens, J turns of the model in all rollouts, one behind the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Le

from fastrl.learning.objectives import Grpo, objective_credits
from fastrl.learning.problem import Problem
from fastrl.learning.tools import Tools, fitting
from fastrl.learning.turn_credit import Turns, compared
from fastrl.rollouts import Rollouts


@dataclass(frozen=True)
class DeltaBelief:
    """ΔBelief-RL: a turn is worth what its reply adds to the policy's belief in the truth, where it adds anything."""

    compares_group: ClassVar[bool] = True
    elicit: str = "\nMy answer: "
    """What is put behind the conversation so far to ask for the policy's belief."""
    truth: str = "{answer}"
    """What is scored behind it. {name} is that field of the problem's row."""
    weight: Annotated[float, Ge(0)] = 1.0
    """λ: factor of the gain in log π(truth), in nats."""
    outcome: Annotated[float, Ge(0)] = 2.0
    """Factor of the conversation's reward, which its last turn gets; 0: rewards are left to the objective."""

    def models(self) -> dict[str, str]:
        return {}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """Turn j of a conversation is compared with the j-th turns of its group. The last one has no reply to gain by.

        A conversation without a reward gets no credit. ValueError for a task without an environment.
        """
        turns = Turns.of(batch)
        gains_J = np.maximum(self.gains(turns, problems, tools), 0.0)
        rewards_J = batch.rewards_R[turns.rollouts_J]
        values_J = self.weight * gains_J + self.outcome * np.where(turns.is_last_J, rewards_J, 0.0 * rewards_J)
        return turns.spread(compared(values_J, list(zip(turns.groups_J, turns.numbers_J, strict=True))))

    def gains(self, turns: Turns, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(J,) what the reply to each turn adds to log π(truth), in nats; 0 for a last turn."""
        beliefs_J = self.beliefs(turns, problems, tools)
        gains_J = np.append(beliefs_J[1:], 0.0)[: len(beliefs_J)] - beliefs_J
        return np.where(turns.is_last_J | np.isnan(gains_J), 0.0, gains_J)

    def beliefs(self, turns: Turns, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(J,) log π(truth | what was said before each turn), summed over the truth's tokens, in nats.

        NaN, with a warning, where that is longer than the model's context.
        """
        batch, elicit, truths = turns.batch, tools.ids(self.elicit), [tools.ids(self._truth(p)) for p in problems]
        asked: dict[tuple, int] = {}  # what was said before a turn and the truth → its number: many begin alike
        places_J = []
        for i, start in zip(turns.rollouts_J.tolist(), turns.starts_J.tolist(), strict=True):
            said = (*batch.prompt(i).tolist(), *batch.completion(i)[:start].tolist(), *elicit)
            places_J.append(asked.setdefault((said, tuple(truths[batch.groups_R[i]])), len(asked)))
        prompts = fitting(
            {k: list(said) for (said, _), k in asked.items()},
            np.array([len(truth) for _, truth in asked]),
            tools.max_sequence_tokens,
            "delta-belief: {lost} of {all} conversations with their truth",
        )
        scored = Rollouts.of(list(prompts.values()), [truth for (_, truth), k in asked.items() if k in prompts])
        beliefs = np.full(len(asked), np.nan)
        if prompts:
            beliefs[list(prompts)] = scored.sum_by_rollout(tools.score(scored))
        return beliefs[places_J]

    def _truth(self, problem: Problem) -> str:
        try:
            return self.truth.format(**problem.row)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"algorithm.delta_belief.truth = {self.truth!r} asks for the field {error}; the row of problem "
                f"{problem.id!r} has {sorted(problem.row)}"
            ) from error


@dataclass(frozen=True)
class Rlvmr:
    """RLVMR: a turn opens with a tag that says what it is for, and is compared with other turns of that tag as well."""

    compares_group: ClassVar[bool] = True
    tags: tuple[str, ...] = ("<planning>", "<explore>", "<reflection>", "<monitor>")
    """What a turn may open with. What it is worth says the environment: turns of its Score."""
    alpha: Annotated[float, Ge(0), Le(1)] = 0.5
    """α: weight of the conversation's advantage; that of the turn among those of its tag has 1 − α."""
    format_penalty: Annotated[float, Ge(0)] = 0.1
    """Taken from a turn that opens with no tag, in the place of its advantage among others."""

    def models(self) -> dict[str, str]:
        if not self.tags or not all(self.tags):
            raise ValueError(f"algorithm.rlvmr.tags = {list(self.tags)}: expected texts that a turn may open with")
        return {}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """Turns are compared within a group. ValueError for a task without an environment."""
        turns = Turns.of(batch)
        texts = [text for texts in tools.turns(batch) for text in texts]
        tags = [next((tag for tag in self.tags if text.lstrip().startswith(tag)), None) for text in texts]
        worth_J = compared(turns.first(batch.turn_rewards_N), list(zip(turns.groups_J, tags, strict=True)))
        worth_J = np.where([tag is None for tag in tags], -self.format_penalty, worth_J)
        whole_N = objective_credits(Grpo(), batch, tools.is_correct(batch))
        return self.alpha * whole_N + (1 - self.alpha) * turns.spread(worth_J)
