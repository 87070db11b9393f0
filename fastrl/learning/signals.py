"""Signals: a batch of judged rollouts → one credit per completion token. Nothing behind a signal asks where it is from.

The objective turns rewards into credit; every further signal of `algorithm.signals` adds its own. A signal is a frozen
dataclass whose fields are its settings (under [algorithm.<name>]), called with the batch, its problems and the tools
that it may use. It asks for a second model by its role: `models()` says which ones must be there.

    distillation        w·(log π_teacher(y_t|x,y_<t) − log π(y_t|x,y_<t)): the policy gradient of the reverse KL to a
                        teacher model, on the policy's own tokens           Agarwal et al. 2023, arXiv:2306.13649
    self-distillation   w·(log π(y_t|x,hint,y_<t) − log π(y_t|x,y_<t)): the teacher is the policy itself, with a correct
                        sibling in its prompt                               SDPO, arXiv:2601.20802, sampled-token form
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Protocol

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
    """What a signal may ask for. All ranks call the same tools in the same order: they share the work."""

    max_sequence_tokens: int | None
    """Prompt and completion of the longest sequence that the policy can score; None: any."""
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

    def draw(self, problems: Sequence[Problem], num_samples: int) -> Rollouts:
        """num_samples new completions of each problem, judged, in the order of the problems. The same ones at each call
        in a step.
        """

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The rollouts with rewards, reasons and answers; groups_R is the index of their problem."""

    def is_correct(self, rollouts: Rollouts) -> np.ndarray:
        """(R,) bool: rewards at or above the threshold."""

    def texts(self, rollouts: Rollouts) -> list[str]:
        """The completions as the verifier sees them."""

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of the problems' prompts, in the task's template."""


class Signal(Protocol):
    """Its fields are its settings, under [algorithm.<name>]. compares_group: needs several rollouts of a prompt."""

    compares_group: ClassVar[bool]

    def models(self) -> dict[str, str]:
        """Role → folder or hub id of a model that must be there beside the policy. ValueError for a missing one."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(N,) credits. groups_R of the batch is the index of a rollout's problem."""


def objective_credits(objective: Objective, batch: Rollouts, is_correct_R: np.ndarray) -> np.ndarray:
    """(N,): each rollout's advantage for all of its tokens. Groups lie one behind the other, of one size."""
    shape = (int(batch.groups_R.max()) + 1, -1)
    rewards_PG = (batch.rewards_R + batch.penalties_R).reshape(shape)
    advantages_PG = objective(rewards_PG, is_correct_R.reshape(shape))
    return batch.by_token(advantages_PG.ravel())


@dataclass(frozen=True)
class Distillation:
    """On-policy distillation: what a teacher model thinks of each token that the policy drew."""

    compares_group: ClassVar[bool] = False
    teacher: str = ""
    """Folder or hub id of the teacher. It must have the policy's tokenizer."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Factor of the credit."""

    def models(self) -> dict[str, str]:
        if not self.teacher:
            raise ValueError("algorithm.distillation.teacher is missing: a Hugging Face folder or hub id")
        return {"teacher": self.teacher}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        return self.weight * (tools.score(batch, model="teacher") - tools.score(batch))


@dataclass(frozen=True)
class SelfDistillation:
    """Self-distillation from a hint: what the policy would think of each token, had it seen a correct sibling."""

    compares_group: ClassVar[bool] = True
    hint: str = "\n\nA correct solution:\n{solution}\n\nNow solve the original problem."
    """What is put behind the prompt's text. {solution} becomes the first other correct completion of the prompt, from
    its last </think> on."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Factor of the credit."""

    def models(self) -> dict[str, str]:
        if "{solution}" not in self.hint:
            raise ValueError(f"algorithm.self_distillation.hint = {self.hint!r} must hold {{solution}}")
        return {}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """Rollouts without a correct sibling get 0, as do those whose hint is longer than the model's context."""
        siblings_R = correct_siblings(batch.groups_R, tools.is_correct(batch))
        texts = [text.rpartition("</think>")[2].strip() for text in tools.texts(batch)]
        hinted = [i for i, sibling in enumerate(siblings_R) if sibling >= 0]
        seen = [self._hinted(problems[batch.groups_R[i]], texts[siblings_R[i]]) for i in hinted]
        prompts = dict(zip(hinted, tools.prompts(seen), strict=True))
        prompts = _fitting(prompts, batch.completion_lengths_R, tools.max_sequence_tokens)
        credits_N, told = np.zeros(batch.num_tokens), batch.take(list(prompts))
        if prompts:
            gained_N = tools.score(told, prompts=list(prompts.values())) - tools.score(told)
            credits_N[np.isin(batch.rollout_N, list(prompts))] = self.weight * gained_N
        return credits_N

    def _hinted(self, problem: Problem, solution: str) -> Problem:
        hint = self.hint.replace("{solution}", solution)
        if isinstance(problem.prompt, str):
            return replace(problem, prompt=problem.prompt + hint)
        *before, last = problem.prompt
        return replace(problem, prompt=[*before, last | {"content": last["content"] + hint}])


def correct_siblings(groups_R: np.ndarray, is_correct_R: np.ndarray) -> np.ndarray:
    """(R,): index of the first other correct rollout of each one's group; −1 where there is none."""
    siblings_R = np.full(len(groups_R), -1)
    for group in np.unique(groups_R):
        members, correct = np.flatnonzero(groups_R == group), np.flatnonzero((groups_R == group) & is_correct_R)
        if len(correct):
            siblings_R[members] = correct[0]
            siblings_R[correct[0]] = correct[1] if len(correct) > 1 else -1
    return siblings_R


def _fitting(prompts: dict[int, list[int]], lengths_R: np.ndarray, limit: int | None) -> dict[int, list[int]]:
    """Those that the model can take with their completion; a warning says how many it cannot."""
    kept = {i: ids for i, ids in prompts.items() if limit is None or len(ids) + lengths_R[i] <= limit}
    if len(kept) < len(prompts):
        lost = len(prompts) - len(kept)
        warnings.warn(
            f"self-distillation: {lost} of {len(prompts)} hinted prompts and completions exceed the model's context of "
            f"{limit} tokens and give no credit",
            stacklevel=2,
        )
    return kept


SIGNALS: dict[str, type[Signal]] = {
    "distillation": Distillation,
    "self-distillation": SelfDistillation,
}
