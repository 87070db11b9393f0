"""Refiners: what becomes of a judged batch before it gets credit; they may put others in the place of its rollouts.

A refiner keeps the groups and their sizes. What it puts in is judged as all the rest is, and lies behind the prompt
that it is trained on, whatever it was drawn behind: its sampler_logprobs_N are the policy's own behind that prompt.

    critique    Critique-GRPO, arXiv:2506.03106. The policy reads each rollout and a critique of it and tries again. The
                best second try of each group, the first correct one or else that of the highest reward, takes the place
                of the group's first rollout, behind the problem's own prompt. There is no importance ratio for it:
                instead of −A·ρ each token pays −A·f(π), f(p) = p/(p + γ).
    redraw      the same without a critique: how much comes from drawing twice as many

f is shaped by a factor of the credit: ∂f/∂log p = γp/(p + γ)², at the p from before the first update. A batch's first
update has f's gradient exactly; later ones have the ratio to that p in place of the new p.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Gt

from fastrl.learning.critics import CRITICS
from fastrl.learning.problem import Problem, filled, hinted, require_places, solution_text
from fastrl.learning.tools import Task, Tools
from fastrl.rollouts import Rollouts


class Refiner(Protocol):
    """Its fields are its settings, under [algorithm.<name>]."""

    def models(self) -> dict[str, str]:
        """Role → folder or hub id of a model that must be there beside the policy. ValueError for settings that cannot
        work.
        """

    def check(self, task: Task, problem: Problem) -> None:
        """ValueError for a task that lacks what will be asked of it. problem: the first of training."""

    def added_tokens(self, max_new_tokens: int) -> int:
        """By how many tokens the prompts that it draws behind may be longer than the problems' own."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> tuple[Rollouts, dict[str, float]]:
        """The batch that gets credit, and metrics of the step. groups_R of both is the index of the problem."""


@dataclass(frozen=True)
class NoRefiner:
    """The batch as it was drawn."""

    def models(self) -> dict[str, str]:
        return {}

    def check(self, task: Task, problem: Problem) -> None:
        """Nothing is asked."""

    def added_tokens(self, max_new_tokens: int) -> int:
        return 0

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> tuple[Rollouts, dict[str, float]]:
        return batch, {}


@dataclass(frozen=True)
class Critique:
    """A second try of each rollout with a critique in the prompt; the best of a group takes the place of its first."""

    critic: Literal[tuple(CRITICS)] = "verdict"
    """What the critique says. verdict: whether it is right. rules: what the task's rules find. model: what a model
    writes. answer: whether it is right and what is, which leaks the answer."""
    right: str = "The solution is correct."
    """Critique of a correct completion."""
    wrong: str = "The solution is wrong."
    """Critique of a wrong one."""
    answer: str = " The correct answer is {answer}."
    """What critic = "answer" puts behind that."""
    question: str = "\n\nA solution:\n{completion}\n\nSay step by step what is right and what is wrong with it."
    """critic = "model": what is put behind the problem's text to have a critique of {completion} written."""
    model: str = ""
    """critic = "model": folder or hub id of the one that writes, with the policy's tokenizer; empty: the policy."""
    hint: str = (
        "\n\nA solution:\n{completion}\n\nA critique of it:\n{critique}\n\nNow solve the original problem again."
    )
    """What is put behind the problem's text for the second try."""
    gamma: Annotated[float, Gt(0)] = 0.1
    """γ of the shaping: a token of probability p learns with a factor γp/(p + γ)², which is largest, 1/4, at p = γ."""

    def models(self) -> dict[str, str]:
        section = "algorithm.critique"
        require_places(self.hint, f"{section}.hint", "completion", "critique")
        require_places(self.answer, f"{section}.answer", "answer")
        require_places(self.question, f"{section}.question", "completion")
        if self.model and self.critic != "model":
            raise ValueError(f'{section}.model = {self.model!r} writes critiques for critic = "model" only')
        return {"critic": self.model} if self.model else {}

    def check(self, task: Task, problem: Problem) -> None:
        if self.critic == "answer":
            task.answer_of(problem)
        if self.critic == "rules":
            task.critique_of(problem, "")

    def added_tokens(self, max_new_tokens: int) -> int:
        """A completion, a critique as long as one, and the words around them."""
        words = max(len(text.encode()) for text in (self.hint, self.question))
        return 2 * max_new_tokens + words

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> tuple[Rollouts, dict[str, float]]:
        """Rollouts without a verdict, and those whose prompt would be too long, are not tried again."""
        tried = np.flatnonzero(~np.isnan(batch.rewards_R))
        prompts = self._prompts(batch.take(tried), [problems[g] for g in batch.groups_R[tried]], tools)
        fitting = {i: ids for i, ids in zip(tried.tolist(), prompts, strict=True) if ids is not None}
        return with_second_tries(batch, problems, fitting, self.gamma, tools)

    def _prompts(self, rollouts: Rollouts, problems: Sequence[Problem], tools: Tools) -> list[list[int] | None]:
        """Of the second try of each; None for one without a critique or beyond the limit, which is said."""
        critiques = CRITICS[self.critic](self, rollouts, problems, tools)
        texts = [solution_text(text) for text in tools.texts(rollouts)]
        told = [
            hinted(problem, filled(self.hint, completion=text, critique=critique or ""))
            for problem, text, critique in zip(problems, texts, critiques, strict=True)
        ]
        pairs = list(zip(critiques, tools.prompts(told), strict=True))
        fits = [critique is not None and len(ids) <= tools.max_prompt_tokens for critique, ids in pairs]
        if not all(fits):
            warnings.warn(
                f"critique: {fits.count(False)} of {len(fits)} prompts for a second try or for its critique exceed "
                f"{tools.max_prompt_tokens} tokens: these rollouts are not tried again",
                stacklevel=2,
            )
        return [ids if fit else None for (_, ids), fit in zip(pairs, fits, strict=True)]


@dataclass(frozen=True)
class Redraw(NoRefiner):
    """The control of `critique`: second tries behind the problem's own prompt, told nothing."""

    gamma: Annotated[float, Gt(0)] = 0.1
    """γ of the shaping, as in `critique`."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> tuple[Rollouts, dict[str, float]]:
        prompts = {i: batch.prompt(i).tolist() for i in np.flatnonzero(~np.isnan(batch.rewards_R)).tolist()}
        return with_second_tries(batch, problems, prompts, self.gamma, tools)


def with_second_tries(
    batch: Rollouts, problems: Sequence[Problem], prompts: dict[int, list[int]], gamma: float, tools: Tools
) -> tuple[Rollouts, dict[str, float]]:
    """The batch with the best second try of each group in the place of its first rollout, and what came of them.

    prompts: token ids behind which to draw one, by the index of the rollout that is tried again.
    """
    tried = np.array(list(prompts), dtype=np.int64)
    again = batch.take(tried)
    if prompts:
        drawn = tools.draw([problems[g] for g in again.groups_R], 1, prompts=list(prompts.values()))
        again = replace(drawn, groups_R=again.groups_R)
    best = again.take(best_of_groups(again, tools.is_correct(again)))
    best = best.behind(tools.prompts([problems[g] for g in best.groups_R]))
    best = replace(best, sampler_logprobs_N=tools.score(best))
    best = replace(best, importance_weights_N=shaping(best.sampler_logprobs_N, gamma))
    refined = with_firsts_replaced(batch, best)
    is_correct_R, is_fixed_R = tools.is_correct(batch), tools.is_correct(again)
    return refined, {
        "refine/tried_share": len(tried) / max(len(batch), 1),
        "refine/own_correct_share": _mean(is_correct_R),
        "refine/wrong_corrected_share": _mean(is_fixed_R[~is_correct_R[tried]]),
        "refine/correct_kept_share": _mean(is_fixed_R[is_correct_R[tried]]),
        "refine/logprob": _mean(best.sampler_logprobs_N),
    } | rescues(batch.groups_R, is_correct_R, tools.is_correct(refined))


def shaping(logprobs_N: np.ndarray, gamma: float) -> np.ndarray:
    """(N,) float64: ∂f/∂log p of f(p) = p/(p + γ)."""
    p_N = np.exp(logprobs_N.astype(np.float64))
    return gamma * p_N / (p_N + gamma) ** 2


def best_of_groups(rollouts: Rollouts, is_correct_R: np.ndarray) -> np.ndarray:
    """Index of each group's first correct rollout, or else of the first with the highest reward; by group.

    Groups in which no rollout has a verdict are left out.
    """
    worth_R = np.where(is_correct_R, np.inf, np.nan_to_num(rollouts.rewards_R, nan=-np.inf))
    order = np.lexsort((-worth_R, rollouts.groups_R))  # stable: the first of equals comes first
    order = order[~np.isnan(rollouts.rewards_R[order])]
    return order[np.unique(rollouts.groups_R[order], return_index=True)[1]]


def with_firsts_replaced(batch: Rollouts, rollouts: Rollouts) -> Rollouts:
    """The batch with these rollouts, of different groups, in the place of their group's first one.

    importance_weights_N are 1 where there were none.
    """
    batch, rollouts = (
        b if b.importance_weights_N is not None else replace(b, importance_weights_N=np.ones(b.num_tokens))
        for b in (batch, rollouts)
    )
    order = np.arange(len(batch))
    order[np.searchsorted(batch.groups_R, rollouts.groups_R)] = len(batch) + np.arange(len(rollouts))
    return Rollouts.concat([batch, rollouts]).take(order)


def rescues(groups_R: np.ndarray, before_R: np.ndarray, after_R: np.ndarray) -> dict[str, float]:
    """Groups without a correct rollout before, and the share of them that have one after."""
    correct_P, rescued_P = (np.bincount(groups_R, is_correct_R) > 0 for is_correct_R in (before_R, after_R))
    return {"refine/all_wrong_groups": int((~correct_P).sum()), "refine/rescued_share": _mean(rescued_P[~correct_P])}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


REFINERS: dict[str, type[Refiner]] = {
    "none": NoRefiner,
    "critique": Critique,
    "redraw": Redraw,
}
