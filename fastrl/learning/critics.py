"""Critics: what a policy that tries again is told of a completion. By how much they give away:

    verdict   whether it is right                               Critique-GRPO's `simple`
    rules     what the task's own rules find wrong with it      (the paper has a stronger model write step by step)
    model     what a model writes of it, a second one or the policy itself
    answer    whether it is right, and what is right            Critique-GRPO's `simple_gt`: it leaks the answer

Critique-GRPO, arXiv:2506.03106. A critic is called with the refiner's settings, judged rollouts, the problem of each of
them and the tools, and returns a text for each; None: it has none to give.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from fastrl.learning.problem import Problem, filled, hinted, solution_text
from fastrl.learning.tools import Tools
from fastrl.rollouts import Rollouts


class Words(Protocol):
    """What critics say, and how a model is asked: settings of the refiner `critique`."""

    right: str
    wrong: str
    answer: str
    question: str
    model: str


Critic = Callable[[Words, Rollouts, Sequence[Problem], Tools], list[str | None]]


def verdict(words: Words, rollouts: Rollouts, problems: Sequence[Problem], tools: Tools) -> list[str | None]:
    """Whether it is right."""
    return [words.right if is_correct else words.wrong for is_correct in tools.is_correct(rollouts).tolist()]


def answer(words: Words, rollouts: Rollouts, problems: Sequence[Problem], tools: Tools) -> list[str | None]:
    """Whether it is right, and a right answer."""
    said = zip(verdict(words, rollouts, problems, tools), problems, strict=True)
    return [word + filled(words.answer, answer=tools.task.answer_of(problem)) for word, problem in said]


def rules(words: Words, rollouts: Rollouts, problems: Sequence[Problem], tools: Tools) -> list[str | None]:
    """What the task's rules find."""
    pairs = zip(problems, tools.texts(rollouts), strict=True)
    return [tools.task.critique_of(problem, solution_text(text)) for problem, text in pairs]


def model(words: Words, rollouts: Rollouts, problems: Sequence[Problem], tools: Tools) -> list[str | None]:
    """What a model writes of it, without being told whether it is right."""
    pairs = zip(problems, tools.texts(rollouts), strict=True)
    asked = [hinted(problem, filled(words.question, completion=solution_text(text))) for problem, text in pairs]
    prompts = tools.prompts(asked)
    fitting = [i for i, ids in enumerate(prompts) if len(ids) <= tools.max_prompt_tokens]
    written = tools.write([prompts[i] for i in fitting], model="critic" if words.model else "policy")
    found = dict(zip(fitting, written, strict=True))
    return [solution_text(found[i]) if i in found else None for i in range(len(prompts))]


CRITICS: dict[str, Critic] = {
    "verdict": verdict,
    "rules": rules,
    "model": model,
    "answer": answer,
}
