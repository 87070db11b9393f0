"""What a task is made of: problems, the reward of a completion, and the task that holds both.

A reward is a plain callable, `Reward` or `GroupReward`, or an `Environment`, which finds it out in a conversation. It
is pickled once for each verifier worker and runs there, never in the trainer process.

    prompt │ turn 1 │ reply 1 │ turn 2 │ … │ turn n          the model learns from its own turns alone

No worker keeps a conversation between two turns: each time it is played again from its beginning, in whichever worker
is free. That costs n(n + 1)/2 calls of `step` for n turns, and buys what a bound worker cannot give: a worker that dies
takes no conversation with it, and a resumed run is the uninterrupted one. So an environment is a function of its row
and the model's texts; what is random is drawn from a seed in the row. One that replies differently when it is played
again is found out, which is a fault.
"""

import hashlib
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
    turns: of an environment, what each turn so far is worth by itself, for signals that ask; empty: it does not say.
    parts: of a sum of rewards, what each of them gave, NaN where it gave nothing; empty: it is no sum.
    """

    reward: float
    reason: str = ""
    answer: str | None = field(default=None, compare=False)
    turns: tuple[float, ...] = ()
    parts: tuple[float, ...] = ()


class Reward(Protocol):
    """The signature of a reward. It may have `prepare()`, too: called once in each worker before any work."""

    def __call__(self, prompt: Prompt, completion: str, **row) -> float | Score: ...


class GroupReward(Protocol):
    """A reward that judges all completions of one prompt at once; the parameter named `completions` says so.

    It returns one number or Score for each completion, in order. A group may have one completion only.
    """

    def __call__(self, prompt: Prompt, completions: list[str], **row) -> Sequence[float | Score]: ...


class Environment(Protocol):
    """What replies to the turns of the model. It may have `prepare()`, too, as a reward has.

    The first observation is the prompt of a problem: it is known before anything runs, and computed once for a group.
    """

    def reset(self, prompt: Prompt, **row) -> None:
        """A conversation begins. One object plays many, one after the other: leave nothing of the last."""
        ...

    def step(self, text: str) -> tuple[str, bool]:
        """(reply, whether the conversation is over) to a turn of the model; a last reply is not shown to it.

        text: with the stop text that ended the turn, without an end-of-sequence token.
        """
        ...

    def score(self) -> float | Score:
        """The reward of the conversation so far. Asked after every turn; the last one counts."""
        ...


@dataclass(frozen=True)
class TurnLimits:
    """How long turns, replies and conversations may be; stop: texts that end a turn. Explained in [task]."""

    max_turns: int = 16
    max_turn_tokens: int = 64
    max_reply_tokens: int = 64
    stop: tuple[str, ...] = ()


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
# (random source, number of samples) -> that many (prompt, completion) pairs, each completion correct. The completion of
# an environment is a list: turn, reply, turn, …, turn.
Demonstrations = Callable[[Random, int], list[tuple[str, str | list[str]]]]
# (completion, row of a problem) -> what is wrong with it, or that nothing is. It runs in the trainer, on text that a
# model wrote: it must end soon whatever that is, and run none of it.
Critique = Callable[[str, dict], str]
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
    module: the user's own module that the reward runs; a resumed run compares its source. Empty: none.
    generate: (config, split) -> problems, where no data is given.
    demonstrations, solutions: correct completions, for the warm start and for checks; None: none are known.
    stop: of an environment, what `task.stop = []` means.
    critique: what is wrong with a completion, for second tries; None: there are no rules to say.
    measures: what else than correctness the reasons of a batch or an evaluation say; None: nothing.
    read_confidence: completion -> the probability of being right that it states, None if it states none.
    """

    reward: Reward | GroupReward | Environment
    read_prompt: Callable[[dict, str], Prompt]
    read_row: Callable[[dict, str], dict]
    template: str
    instruction: str = ""
    packages: tuple[str, ...] = ()
    module: str = ""
    generate: Callable[..., Sequence[Problem]] | None = None
    demonstrations: Demonstrations | None = None
    solutions: Solutions | None = None
    stop: tuple[str, ...] = ()
    critique: Critique | None = None
    measures: Measures | None = None
    read_confidence: Callable[[str], float | None] = stated_confidence


@dataclass(frozen=True)
class Weighted:
    """One of several rewards that training adds up. name: that of its metrics."""

    name: str
    reward: Reward | GroupReward
    weight: float = 1.0


@dataclass(frozen=True)
class Task:
    """Problems by split and the reward that judges a completion of any of them; `template` is never "auto".

    summed: where training adds rewards up, all of them, the task's own first; empty: its own alone. parts: names of
    what `reward` itself adds up, which is that of training only.
    """

    name: str
    train: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]
    reward: Reward | GroupReward | Environment
    template: str
    instruction: str = ""
    system_prompt: str = ""
    demonstrations: Demonstrations | None = None
    solutions: Solutions | None = None
    limits: TurnLimits = TurnLimits()
    critique: Critique | None = None
    measures: Measures | None = None
    read_confidence: Callable[[str], float | None] = stated_confidence
    summed: tuple[Weighted, ...] = ()
    parts: tuple[str, ...] = ()

    def answer_of(self, problem: Problem) -> str:
        """What is right: the row's answer, or the shortest solution. ValueError where neither is known."""
        if "answer" in problem.row:
            return str(problem.row["answer"])
        known = self.solutions(problem.row) if self.solutions else []
        if not known:
            where = problem.where or problem.id
            raise ValueError(
                f"task {self.name!r} knows no answer of {where}: no 'answer' in its row, no solutions listed"
            )
        return min(known, key=len)

    def critique_of(self, problem: Problem, completion: str) -> str:
        """What the rules find in a completion. ValueError for a task that has none."""
        if self.critique is None:
            raise ValueError(f"task {self.name!r} has no rules that say what is wrong with a completion (`critique`)")
        return self.critique(completion, problem.row)

    def measured(self, reasons: Sequence[str]) -> dict[str, float]:
        """The task's measures of judged completions; none where it has none, or nothing was judged."""
        if self.measures is None or not len(reasons):
            return {}
        counts = Counter(reasons)
        return self.measures({reason: count / len(reasons) for reason, count in counts.items()})
