"""What signals, factors, refiners and critics may ask of the trainer and of the task, whoever asks."""

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fastrl.learning.problem import Problem
from fastrl.rollouts import Rollouts


class Task(Protocol):
    """What a task knows of its problems. ValueError where it knows nothing of the kind."""

    def answer_of(self, problem: Problem) -> str:
        """What is right: the row's answer, or the shortest of the task's solutions."""

    def critique_of(self, problem: Problem, completion: str) -> str:
        """What the task's rules find in a completion's text."""


class Tools(Protocol):
    """What a signal or a refiner may ask for. All ranks call the same tools in the same order: they share the work."""

    max_sequence_tokens: int | None
    """Prompt and completion of the longest sequence that the policy can score; None: any."""
    max_prompt_tokens: int
    """The longest prompt that may be drawn or written behind."""
    task: Task
    """What the task knows."""
    step: int
    """Number of the step that these rollouts are for, from 1."""

    def score(
        self, rollouts: Rollouts, *, model: str = "policy", prompts: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """(N,) float32 log-probs of the completions; behind other prompts (token ids, one a rollout) if some are given.

        model: a role of `models()`, or the policy as it is before the update.
        """

    def entropies(self, rollouts: Rollouts) -> np.ndarray:
        """(N,) float32, nats: of the policy's distribution at each token of the completions, before the update."""

    def draw(
        self, problems: Sequence[Problem], num_samples: int, *, prompts: Sequence[Sequence[int]] | None = None
    ) -> Rollouts:
        """num_samples new completions of each problem, judged, in the order of the problems. The same ones at each call
        in a step. They are drawn behind other prompts (token ids, one a problem) if some are given.
        """

    def write(self, prompts: Sequence[Sequence[int]], *, model: str = "policy") -> list[str]:
        """One text behind each prompt, judged by nobody, from the policy or from a role of `models()`."""

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The rollouts with rewards, reasons and answers; groups_R is the index of their problem."""

    def is_correct(self, rollouts: Rollouts) -> np.ndarray:
        """(R,) bool: rewards at or above the threshold."""

    def texts(self, rollouts: Rollouts) -> list[str]:
        """The completions as the verifier sees them."""

    def turns(self, rollouts: Rollouts) -> list[list[str]]:
        """The model's turns in each conversation, as the environment hears them."""

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of the problems' prompts, in the task's template."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text alone, without special tokens."""


def fitting(prompts: dict[int, list[int]], lengths_R: np.ndarray, limit: int | None, what: str) -> dict[int, list[int]]:
    """Those that the model can take with their completion; a warning says how many it cannot."""
    kept = {i: ids for i, ids in prompts.items() if limit is None or len(ids) + lengths_R[i] <= limit}
    if len(kept) < len(prompts):
        said = what.format(lost=len(prompts) - len(kept), all=len(prompts))
        warnings.warn(f"{said} exceed the model's context of {limit} tokens and give no credit", stacklevel=2)
    return kept
