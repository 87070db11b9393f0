"""Signals: a batch of judged rollouts → one credit per completion token. Nothing behind a signal asks where it is from.

The objective turns rewards into credit; every further signal of `algorithm.signals` adds its own. A signal is a frozen
dataclass whose fields are its settings (under [algorithm.<name>]), called with the batch, its problems and the tools
that it may use. It asks for a second model by its role: `models()` says which ones must be there.

    distillation        w·(log π_teacher(y_t|x,y_<t) − log π(y_t|x,y_<t)): the policy gradient of the reverse KL to a
                        teacher model, on the policy's own tokens           Agarwal et al. 2023, arXiv:2306.13649
    self-distillation   w·(log π₀(y_t|x,hint,y_<t) − log π(y_t|x,y_<t)): the teacher is the model of the start, with
                        a correct sibling in its prompt                     SDPO, arXiv:2601.20802, sampled-token form
    delta-belief, rlvmr                                  credit by turns of a conversation     `learning.turn_signals`
    gae                 what came against what a critic expected, which learns beside the policy         `learning.gae`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from annotated_types import Ge

from fastrl.learning.gae import Gae
from fastrl.learning.problem import Problem, filled, hinted, require_places, solution_text
from fastrl.learning.tools import Tools, fitting
from fastrl.learning.turn_signals import DeltaBelief, Rlvmr
from fastrl.rollouts import Rollouts


class SignalSettings(Protocol):
    """Its fields are its settings, under [algorithm.<name>]. compares_group: needs several rollouts of a prompt.

    A signal that learns is settings alone: `learners.LEARNERS` says what is made from them.
    """

    compares_group: ClassVar[bool]

    def models(self) -> dict[str, str]:
        """Role → folder or hub id of a model that must be there beside the policy; empty: what the run begins with.

        ValueError for a missing one.
        """


class Signal(SignalSettings, Protocol):
    """A signal without weights of its own is called itself."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(N,) credits. groups_R of the batch is the index of a rollout's problem."""


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
    """Self-distillation from a hint: what the policy would think of each token, had it seen a correct sibling.

    The teacher must not follow the policy at once: the two then run away together. SDPO's is a moving average.
    """

    compares_group: ClassVar[bool] = True
    hint: str = "\n\nA correct solution:\n{solution}\n\nNow solve the original problem."
    """What is put behind the prompt's text. {solution} becomes the first other correct completion of the prompt, from
    its last </think> on."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Factor of the credit."""
    teacher: Literal["start", "policy"] = "start"
    """Who reads the hint: start: the model that the run begins with, a second set of weights. policy: the model of the
    step, for which the signal collapses in our study."""

    def models(self) -> dict[str, str]:
        require_places(self.hint, "algorithm.self_distillation.hint", "solution")
        return {"start": ""} if self.teacher == "start" else {}

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """Rollouts without a correct sibling get 0, as do those whose hint is longer than the model's context."""
        siblings_R = correct_siblings(batch.groups_R, tools.is_correct(batch))
        texts = [solution_text(text) for text in tools.texts(batch)]
        told_by = {i: texts[sibling] for i, sibling in enumerate(siblings_R) if sibling >= 0}
        seen = [hinted(problems[batch.groups_R[i]], filled(self.hint, solution=t)) for i, t in told_by.items()]
        prompts = dict(zip(told_by, tools.prompts(seen), strict=True))
        what = "self-distillation: {lost} of {all} hinted prompts and completions"
        prompts = fitting(prompts, batch.completion_lengths_R, tools.max_sequence_tokens, what)
        credits_N, told = np.zeros(batch.num_tokens), batch.take(list(prompts))
        if prompts:
            hinted_N = tools.score(told, model=self.teacher, prompts=list(prompts.values()))
            gained_N = hinted_N - tools.score(told)
            credits_N[np.isin(batch.rollout_N, list(prompts))] = self.weight * gained_N
        return credits_N


def correct_siblings(groups_R: np.ndarray, is_correct_R: np.ndarray) -> np.ndarray:
    """(R,): index of the first other correct rollout of each one's group; −1 where there is none."""
    siblings_R = np.full(len(groups_R), -1)
    for group in np.unique(groups_R):
        members, correct = np.flatnonzero(groups_R == group), np.flatnonzero((groups_R == group) & is_correct_R)
        if len(correct):
            siblings_R[members] = correct[0]
            siblings_R[correct[0]] = correct[1] if len(correct) > 1 else -1
    return siblings_R


SIGNALS: dict[str, type[SignalSettings]] = {
    "distillation": Distillation,
    "self-distillation": SelfDistillation,
    "delta-belief": DeltaBelief,
    "rlvmr": Rlvmr,
    "gae": Gae,
}
