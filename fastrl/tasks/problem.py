"""What a task is made of: problems, the reward of a completion, and the task that holds both.

A reward is a plain callable, `Reward` or `GroupReward`. It is pickled once for each verifier worker and runs there,
never in the trainer process.
"""

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from .confidence import stated_confidence

Prompt = str | list[dict[str, str]]  # a question, or the messages of a chat: {"role": …, "content": …}


@dataclass(frozen=True)
class Score:
    """What a built-in reward returns: 1.0 for a correct completion, 0.0 otherwise, and one word or phrase why.

    answer: the completion's final answer in a canonical form, by which samples vote (maj@k); None: it has none.
    """

    reward: float
    reason: str = ""
    answer: str | None = field(default=None, compare=False)


class Reward(Protocol):
    """The signature of a reward. It may have `prepare()`, too: called once in each worker before any work."""

    def __call__(self, prompt: Prompt, completion: str, **row) -> float | Score: ...


class GroupReward(Protocol):
    """A reward that judges all completions of one prompt at once; the parameter named `completions` says so.

    It returns one number or Score for each completion, in order. A group may have one completion only.
    """

    def __call__(self, prompt: Prompt, completions: list[str], **row) -> Sequence[float | Score]: ...


def judges_groups(reward: Callable) -> bool:
    """Whether the reward's second parameter is `completions`. TypeError if another parameter has that name."""
    try:
        signature = inspect.signature(reward)
    except ValueError:  # a function written in C does not tell
        return False
    names = list(signature.parameters)
    if "completions" not in names:
        return False
    if names[1:2] != ["completions"] or "completion" in names:
        raise TypeError(
            "expected reward(prompt, completion, **row), or reward(prompt, completions, **row) for one that judges "
            f"all completions of a prompt at once; found {signature}"
        )
    return True


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `prompt` is the question before any template; `row` holds the keyword arguments of the reward.

    id: made of the content (`content_id`): equal problems of two files have the same one, different problems do not.
    where: file and line, for messages; empty for a generated problem.
    """

    id: str
    prompt: Prompt
    row: dict
    where: str = ""


def content_id(prompt: Prompt, row: dict) -> str:
    """The first words of a prompt, for people, and a hash of prompt and row."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    words = "-".join(re.findall(r"[a-z0-9]+", text.lower())[:5])[:32]
    content = json.dumps([prompt, row], sort_keys=True, default=repr).encode()
    return f"{words}-{hashlib.blake2b(content, digest_size=8).hexdigest()}".lstrip("-")


def with_different_ids(problems: Sequence[Problem]) -> list[Problem]:
    """The same problems; one that is repeated gets a number behind its id, so that each is counted by itself."""
    seen: Counter[str] = Counter()
    numbered = []
    for problem in problems:
        seen[problem.id] += 1
        count = seen[problem.id]
        numbered.append(problem if count == 1 else replace(problem, id=f"{problem.id}#{count}"))
    return numbered


# row of a problem -> correct completions of it, all different; empty where there are too many to list.
Solutions = Callable[[dict], list[str]]
# (random source, number of samples) -> that many (prompt, completion) pairs, each completion correct.
Demonstrations = Callable[[Random, int], list[tuple[str, str]]]
# reason -> its share of the judged completions, together 1; what a task makes of them, by name.
Measures = Callable[[Mapping[str, float]], dict[str, float]]


@dataclass(frozen=True)
class TaskKind:
    """What one family of tasks brings: how its rows are read, made and rewarded.

    read_prompt, read_row: (fields of a dataset row, where) -> the question; -> the reward's keyword arguments. Both
        raise ValueError naming `where` (file and line), or UnusableRow where a few such rows may be skipped.
    template: what `template = "auto"` means.
    instruction: what a template appends to the question, so that the model answers where the reward looks.
    packages: the distributions whose versions the reward depends on; a resumed run compares them.
    generate: (config, split) -> problems, where no data is given.
    demonstrations, solutions: correct completions, for the warm start and for checks; None: none are known.
    measures: what else than correctness the reasons of a batch or an evaluation say; None: nothing.
    read_confidence: completion -> the probability of being right that it states, None if it states none.
    """

    reward: Reward | GroupReward
    read_prompt: Callable[[dict, str], Prompt]
    read_row: Callable[[dict, str], dict]
    template: str
    instruction: str = ""
    packages: tuple[str, ...] = ()
    generate: Callable[..., Sequence[Problem]] | None = None
    demonstrations: Demonstrations | None = None
    solutions: Solutions | None = None
    measures: Measures | None = None
    read_confidence: Callable[[str], float | None] = stated_confidence


@dataclass(frozen=True)
class Task:
    """Problems by split and the reward that judges a completion of any of them; `template` is never "auto"."""

    name: str
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]
    reward: Reward | GroupReward
    template: str
    instruction: str = ""
    demonstrations: Demonstrations | None = None
    solutions: Solutions | None = None
    measures: Measures | None = None
    read_confidence: Callable[[str], float | None] = stated_confidence

    def measured(self, reasons: Sequence[str]) -> dict[str, float]:
        """The task's measures of judged completions; none where it has none, or nothing was judged."""
        if self.measures is None or not len(reasons):
            return {}
        counts = Counter(reasons)
        return self.measures({reason: count / len(reasons) for reason, count in counts.items()})
