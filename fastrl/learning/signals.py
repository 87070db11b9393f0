"""Signals: a batch of judged rollouts → one credit per completion token. Nothing behind a signal asks where it is from.

The objective turns rewards into credit; every further signal of `algorithm.signals` adds its own. A signal is a frozen
dataclass whose fields are its settings (under [algorithm.<name>]), called with the batch, its problems and the tools
that it may use. It asks for a second model by its role: `models()` says which ones must be there.

    distillation        w·(log π_teacher(y_t|x,y_<t) − log π(y_t|x,y_<t)): the policy gradient of the reverse KL to a
                        teacher model, on the policy's own tokens           Agarwal et al. 2023, arXiv:2306.13649
    self-distillation   w·(log π₀(y_t|x,hint,y_<t) − log π(y_t|x,y_<t)): the teacher is the model of the start, with
                        a correct sibling in its prompt                     SDPO, arXiv:2601.20802, sampled-token form
    delta-belief        what a turn of a conversation adds to log π(truth|history), compared with turns of the same
                        number                                              ΔBelief-RL, arXiv:2602.12342
    rlvmr               α·(advantage of the conversation) + (1 − α)·(advantage of the turn among those of its tag)
                                                                            RLVMR, arXiv:2507.22844
    gae                 what came against what a critic expected, which learns beside the policy         `learning.gae`
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import numpy as np
from annotated_types import Ge, Le

from fastrl.learning.gae import Gae
from fastrl.learning.objectives import Grpo, Objective
from fastrl.learning.problem import Problem, filled, hinted, require_places, solution_text
from fastrl.learning.turn_credit import Turns, compared
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
        prompts = _fitting(prompts, batch.completion_lengths_R, tools.max_sequence_tokens, what)
        credits_N, told = np.zeros(batch.num_tokens), batch.take(list(prompts))
        if prompts:
            hinted_N = tools.score(told, model=self.teacher, prompts=list(prompts.values()))
            gained_N = hinted_N - tools.score(told)
            credits_N[np.isin(batch.rollout_N, list(prompts))] = self.weight * gained_N
        return credits_N


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
        prompts = _fitting(
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


def correct_siblings(groups_R: np.ndarray, is_correct_R: np.ndarray) -> np.ndarray:
    """(R,): index of the first other correct rollout of each one's group; −1 where there is none."""
    siblings_R = np.full(len(groups_R), -1)
    for group in np.unique(groups_R):
        members, correct = np.flatnonzero(groups_R == group), np.flatnonzero((groups_R == group) & is_correct_R)
        if len(correct):
            siblings_R[members] = correct[0]
            siblings_R[correct[0]] = correct[1] if len(correct) > 1 else -1
    return siblings_R


def _fitting(
    prompts: dict[int, list[int]], lengths_R: np.ndarray, limit: int | None, what: str
) -> dict[int, list[int]]:
    """Those that the model can take with their completion; a warning says how many it cannot."""
    kept = {i: ids for i, ids in prompts.items() if limit is None or len(ids) + lengths_R[i] <= limit}
    if len(kept) < len(prompts):
        said = what.format(lost=len(prompts) - len(kept), all=len(prompts))
        warnings.warn(f"{said} exceed the model's context of {limit} tokens and give no credit", stacklevel=2)
    return kept


SIGNALS: dict[str, type[SignalSettings]] = {
    "distillation": Distillation,
    "self-distillation": SelfDistillation,
    "delta-belief": DeltaBelief,
    "rlvmr": Rlvmr,
    "gae": Gae,
}
