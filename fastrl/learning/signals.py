"""Signals: a batch of judged rollouts → one credit per completion token. Nothing behind a signal asks where it is from.

The objective turns rewards into credit; every further signal of `algorithm.signals` adds its own. A signal is a frozen
dataclass whose fields are its settings (under [algorithm.<name>]), called with the batch, its problems and the tools
that it may use. It asks for a second model by its role: `models()` says which ones must be there.

    distillation        w·(log π_teacher(y_t|x,y_<t) − log π(y_t|x,y_<t)): the policy gradient of the reverse KL to a
                        teacher model, on the policy's own tokens           Agarwal et al. 2023, arXiv:2306.13649
    self-distillation   w·(log π(y_t|x,hint,y_<t) − log π(y_t|x,y_<t)): the teacher is the policy itself, with a correct
                        sibling in its prompt                               SDPO, arXiv:2601.20802, sampled-token form
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge

from fastrl.learning.objectives import Objective
from fastrl.rollouts import Rollouts


class Problem(Protocol):
    """What a signal sees of a problem: the prompt before its template, and the fields of its row."""

    id: str
    prompt: str | list[dict[str, str]]
    row: dict


class Tools(Protocol):
    """What a signal may ask for. All ranks call the same tools in the same order: some share their work."""

    def score(self, rollouts: Rollouts, *, model: str = "policy", prompts: Sequence[Sequence[int]] | None = None):
        """(N,) float32 log-probs of the completions, behind other prompts (token ids, one a rollout) if some are given.

        model: a role of `models()`, or the policy as it is before the update.
        """

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The rollouts with rewards, reasons and answers; groups_R is the index of their problem."""

    def draw(self, problems: Sequence[Problem], num_samples: int, seed: int) -> Rollouts:
        """num_samples new completions of each problem, judged."""

    def texts(self, rollouts: Rollouts) -> list[str]:
        """Completions as text."""

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of the problems' prompts in the task's template."""

    def is_correct(self, rollouts: Rollouts) -> np.ndarray:
        """(R,) bool: rewards at or above the task's threshold."""


class Signal(Protocol):
    def models(self) -> dict[str, str]:
        """Role → folder or hub id of a model that must be loaded beside the policy. Empty for most."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(N,) credits, floats. groups_R of the batch is the index of a rollout's problem."""


def objective_credits(objective: Objective, batch: Rollouts, threshold: float) -> np.ndarray:
    """(N,): each rollout's advantage for all of its tokens. Groups lie one behind the other, of one size."""
    shape = (int(batch.groups_R.max()) + 1, -1)
    rewards_PG = (batch.rewards_R + batch.penalties_R).reshape(shape)
    advantages_PG = objective(rewards_PG, (batch.rewards_R >= threshold).reshape(shape))
    return batch.by_token(advantages_PG.ravel())


@dataclass(frozen=True)
class Distillation:
    """On-policy distillation: what a teacher model thinks of each token that the policy drew."""

    teacher: str = ""
    """Folder or hub id of the teacher. It must have the policy's tokenizer."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Factor of the credit."""

    def models(self) -> dict[str, str]:
        return {"teacher": self.teacher}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        return self.weight * (tools.score(batch, model="teacher") - tools.score(batch))


@dataclass(frozen=True)
class SelfDistillation:
    """Self-distillation from a hint: what the policy would think of each token, had it seen a correct sibling."""

    hint: str = "\n\nA correct solution:\n{solution}\n\nNow solve the original problem.\n"
    """What is put behind the prompt's text; {solution} becomes the completion of the first other correct rollout."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Factor of the credit."""

    def __post_init__(self) -> None:
        if "{solution}" not in self.hint:
            raise ValueError(f"algorithm.self_distillation.hint = {self.hint!r} must hold {{solution}}")

    def models(self) -> dict[str, str]:
        return {}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        return np.zeros(batch.num_tokens)


SIGNALS: dict[str, type[Signal]] = {"distillation": Distillation, "self-distillation": SelfDistillation}
