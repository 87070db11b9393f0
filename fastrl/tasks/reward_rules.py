"""Reward rules: what training makes of the verifier's scores (`task.reward`). Evaluations keep to the verifier itself.

    verifier         the score as it is
    binary           +1 right, −1 otherwise
    ternary          +1 right, 0 abstained, −1 otherwise          TruthRL, Wei et al. 2025, arXiv:2509.25760
    confidence       c − (q − c)², −1 where no q is stated        RLCR, Damani et al. 2025, arXiv:2507.16806
    majority         1 for the group's most frequent answer       TTRL, Zuo et al. 2025, arXiv:2504.16084
    coin[:p]         1 with probability p (½), for nothing        ┐
    inverted         1 − the score                                │ spurious rewards,
    format           1 where the verifier could read an answer    │ Shao et al. 2025, arXiv:2506.10947
    majority-wrong   1 for the group's most frequent wrong answer ┘

c is 1 for a right completion (a score of 1), else 0; q in [0, 1] is the confidence that it states. RLCR's code gives
(c + 1 − (q − c)²) / 2, and 0 for a completion without its format, which is (r + 1) / 2 of ours; its bonus for the
format is left out. A truncated completion counts as everywhere: at most 0 with `truncated = "wrong"`.

A rule sees all completions of a prompt. One that makes the verifier hang or fail takes its group with it.
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .awaited import then, together
from .correctness import Correctness
from .problem import GroupReward, Measures, Prompt, Reward, Score, Task
from .signatures import is_async, is_environment, judges_groups
from .summed import SummedReward
from .verifier.verdict import Verdict, group_verdicts_of

ABSTAINED = "abstained"  # how the reason of a verifier begins that saw a completion decline to answer
UNKNOWN = {"unknown", "idontknow"}  # final answers that decline, letters alone
AS_IT_IS = "verifier"


@dataclass(frozen=True)
class Judged:
    """What a rule knows of one completion: the verifier's verdict, which has a reward, and the confidence it states."""

    text: str
    verdict: Verdict
    confidence: float | None

    @property
    def is_right(self) -> bool:
        return Correctness().is_correct(self.verdict.reward)

    @property
    def has_abstained(self) -> bool:
        """The verifier said so, or the final answer is a plain `unknown` or `I don't know`."""
        letters = re.sub(r"[^a-z]", "", (self.verdict.answer or "")[:40].lower().removeprefix("\\text"))
        return self.verdict.reason.startswith(ABSTAINED) or letters in UNKNOWN

    def scored(self, reward: float, reason: str | None = None) -> Score:
        """Another reward for it; the reason and the answer stay the verifier's unless one is given."""
        return Score(reward, self.verdict.reason if reason is None else reason, self.verdict.answer)


Rule = Callable[[Prompt, Sequence[Judged]], list[Score]]  # of one group, in order


def binary(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """+1 or −1: to abstain is as bad as to be wrong."""
    return [one.scored(1.0 if one.is_right else -1.0) for one in group]


def ternary(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """+1, 0 or −1: to abstain is better than to be wrong, and worse than to be right."""
    return [one.scored(1.0 if one.is_right else 0.0 if one.has_abstained else -1.0) for one in group]


def confidence(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """Correctness less the squared error of the stated confidence: highest, in the mean, for a confidence that is true.

    With 0 < q < 1 it is above 0 exactly for right completions.
    """
    return [
        one.scored(one.is_right - (one.confidence - one.is_right) ** 2)
        if one.confidence is not None
        else one.scored(-1.0, "no confidence")
        for one in group
    ]


def majority(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """1 for the answer that most have, the first seen of equals. Completions without an answer vote, too: where they
    win, nobody gets 1. The reason says what the winner was worth, which the reward does not know."""
    (label, _), *_ = Counter(one.verdict.answer for one in group).most_common(1)
    winner = next(one for one in group if one.verdict.answer == label)
    worth = "no" if label is None else "right" if winner.is_right else "wrong"
    return [
        one.scored(
            float(label is not None and one.verdict.answer == label),
            f"{worth} label, {'right' if one.is_right else 'wrong'}",
        )
        for one in group
    ]


def vote_measures(shares: Mapping[str, float]) -> dict[str, float]:
    """label_accuracy: the share of completions whose group voted for a right answer; accuracy: of right completions."""
    return {
        "label_accuracy": sum(share for reason, share in shares.items() if reason.startswith("right label")),
        "label_missing": sum(share for reason, share in shares.items() if reason.startswith("no label")),
        "accuracy": sum(share for reason, share in shares.items() if reason.endswith("label, right")),
    }


def majority_wrong(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """1 for the most frequent of the wrong answers, the first seen of equals; where all are right, nobody gets 1."""
    votes = Counter(one.verdict.answer for one in group if not one.is_right and one.verdict.answer is not None)
    label = votes.most_common(1)[0][0] if votes else None
    return [one.scored(float(label is not None and one.verdict.answer == label)) for one in group]


def coin(prompt: Prompt, group: Sequence[Judged], *, probability: float = 0.5) -> list[Score]:
    """Drawn from a hash of the prompt, all texts of the group and the place in it, so that a resumed run draws alike.

    Equal texts of a group get draws of their own, and other groups others.
    """
    digest = hashlib.blake2b(repr([prompt, *(one.text for one in group)]).encode("utf-8", "backslashreplace"))
    draws = [hashlib.blake2b(digest.digest() + bytes(str(i), "ascii"), digest_size=8) for i in range(len(group))]
    is_head = [int.from_bytes(draw.digest()) < probability * 2**64 for draw in draws]
    return [one.scored(float(head)) for one, head in zip(group, is_head, strict=True)]


def inverted(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """1 − the verifier's score, which lies between 0 and 1."""
    return [one.scored(1.0 - one.verdict.reward) for one in group]


def readable(prompt: Prompt, group: Sequence[Judged]) -> list[Score]:
    """1 where the verifier read an answer, whatever it is. A reward that returns plain numbers reads one everywhere."""
    return [one.scored(float(one.verdict.answer is not None)) for one in group]


RULES: dict[str, Rule] = {
    "binary": binary,
    "ternary": ternary,
    "confidence": confidence,
    "majority": majority,
    "majority-wrong": majority_wrong,
    "coin": coin,
    "inverted": inverted,
    "format": readable,
}
MEASURES: dict[str, Measures] = {"majority": vote_measures}  # of rules whose reasons are not the verifier's


def find_rule(name: str) -> Rule:
    """The rule of that name. ValueError for an unknown one, with the nearest known, and for a coin that is none."""
    stem, colon, number = name.partition(":")
    if stem == "coin" and colon:
        try:
            probability = float(number)
        except ValueError:
            probability = -1.0
        if not 0 <= probability <= 1:
            raise ValueError(f"task.reward = {name!r}: expected coin:p with a probability p from 0 to 1, as coin:0.25")
        return partial(coin, probability=probability)
    if name not in RULES:
        near = difflib.get_close_matches(name, [AS_IT_IS, *RULES], n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown task.reward {name!r}; known: {', '.join([AS_IT_IS, *RULES])}.{hint}")
    return RULES[name]


@dataclass(frozen=True)
class RuledReward:
    """The reward of a group by a rule over a verifier's verdicts; a fault of the verifier is one of the whole group."""

    verifier: Reward | GroupReward
    rule: Rule
    read_confidence: Callable[[str], float | None]

    def prepare(self) -> None:
        """What the verifier wants to have done before."""
        getattr(self.verifier, "prepare", lambda: None)()

    @property
    def is_async(self) -> bool:
        return is_async(self.verifier)

    def __call__(self, prompt: Prompt, completions: list[str], /, **row) -> list[Score]:
        if is_environment(getattr(self.verifier, "__wrapped__", self.verifier)):
            raise TypeError("an environment scores conversations, on which no rule works: set task.reward = 'verifier'")
        if judges_groups(self.verifier):
            returned = self.verifier(prompt, list(completions), **row)
        else:
            returned = together([self.verifier(prompt, completion, **row) for completion in completions])
        return then(returned, lambda found: self._ruled(prompt, completions, found))

    def _ruled(self, prompt: Prompt, completions: list[str], returned: object) -> list[Score]:
        verdicts = group_verdicts_of(returned, completions)
        if verdicts[0].is_fault:
            raise ValueError(verdicts[0].reason)
        known = zip(completions, verdicts, map(self.read_confidence, completions), strict=True)
        return self.rule(prompt, [Judged(*one) for one in known])


def trained_by(task: Task, rule: str) -> Task:
    """The task as training sees it: the same problems, rewarded by the rule of this name, to which the task's other
    rewards are added. ValueError as `find_rule`."""
    if rule != AS_IT_IS:
        reward = RuledReward(task.reward, find_rule(rule), task.read_confidence)
        task = replace(task, reward=reward, measures=MEASURES.get(rule, task.measures))
    if not task.summed:
        return task
    own, *others = task.summed
    summed = (replace(own, reward=task.reward), *others)
    return replace(task, reward=SummedReward(summed), parts=tuple(one.name for one in summed))
