"""Countdown in which some targets cannot be reached, and a completion may say so: `()`, an expression of nothing.

Whether a problem has a solution is known, so abstaining is verified without a judge. To abstain is never correct: what
it is worth is for a reward rule to say (`ternary`). A share of the problems, UNSOLVABLE, has digits and a target of the
usual kind and no solution; they are split as the solvable ones are.

    accuracy        right expressions, of all completions: UNSOLVABLE of them cannot be right
    hallucination   everything that is neither right nor abstains
    truthfulness    accuracy − hallucination                      TruthRL, arXiv:2509.25760, weights (1, 0, 1)
    abstained       with its share among solvable and unsolvable problems
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement
from random import Random
from typing import TYPE_CHECKING

from . import countdown
from .problem import Problem, Score
from .rows import UnusableRow

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

ABSTENTION = "()"
UNSOLVABLE = 0.3  # of the problems
HOPELESS_SHOWN, DECLINED = 0.15, 0.1  # of the demonstrations: no solution; abstains from one that there is
HOPELESS = ", no solution"


def reward(prompt: str, completion: str, *, numbers: list[int], target: int, has_solution: bool) -> Score:
    """1.0 for a right expression. reason: Countdown's or `abstained`; `, no solution` is appended where that is so."""
    suffix = "" if has_solution else HOPELESS
    if completion.replace(" ", "") == ABSTENTION:
        return Score(0.0, f"abstained{suffix}", ABSTENTION)
    score = countdown.reward(prompt, completion, numbers=numbers, target=target)
    return replace(score, reason=f"{score.reason}{suffix}", answer=score.answer)


def measures(shares: Mapping[str, float]) -> dict[str, float]:
    """The numbers of the module's table; those of a kind of problem are left out where a batch has none of it.

    A truncated completion counts as hallucinated, and for neither kind: its reason does not say which.
    """
    accuracy, rightly = shares.get("ok", 0.0), shares.get(f"abstained{HOPELESS}", 0.0)
    wrongly = shares.get("abstained", 0.0)
    unsolvable = sum(share for reason, share in shares.items() if reason.endswith(HOPELESS))
    solvable = 1.0 - unsolvable - shares.get("truncated", 0.0)
    hallucination = 1.0 - accuracy - rightly - wrongly
    found = {
        "accuracy": accuracy,
        "hallucination": hallucination,
        "truthfulness": accuracy - hallucination,
        "abstained": rightly + wrongly,
    }
    if solvable > 1e-9:
        found |= {"accuracy_solvable": accuracy / solvable, "abstained_solvable": wrongly / solvable}
    return found | ({"abstained_unsolvable": rightly / unsolvable} if unsolvable else {})


def read_row(fields: dict, where: str) -> dict:
    """Countdown's row and `has_solution`. ValueError for a value that is no truth value."""
    row, has_solution = countdown.read_row(fields, where), fields.get("has_solution")
    if has_solution is None:
        raise UnusableRow(f"{where}: no field 'has_solution'; the row has {sorted(fields)}")
    if not isinstance(has_solution, bool):
        raise ValueError(f"{where}: 'has_solution' must be true or false, found {has_solution!r}")
    return row | {"has_solution": has_solution}


def generate(config: "TaskConfig", split: str) -> list[Problem]:
    """config.num_<split> problems in a random order, a share UNSOLVABLE of which has no solution; 0: all solvable ones
    of the split, and as many others as that share asks for."""
    rng = Random(f"countdown-abstain {config.seed} {split}")
    count = getattr(config, f"num_{split}")
    wanted = max(1, round(count * (1 - UNSOLVABLE))) if count else 0
    known = countdown.generate(replace(config, **{f"num_{split}": wanted}), split)
    num_unsolvable = count - len(known) if count else round(len(known) * UNSOLVABLE / (1 - UNSOLVABLE))
    hopeless = unsolvable(split)
    pairs = rng.sample(hopeless, min(num_unsolvable, len(hopeless)))
    problems = [_problem(p.row["numbers"], p.row["target"], True) for p in known]
    problems += [_problem(rng.sample(digits, len(digits)), target, False) for digits, target in pairs]
    return rng.sample(problems, len(problems))


@cache
def unsolvable(split: str) -> list[tuple[tuple[int, ...], int]]:
    """All (sorted digits, target) of a split without a solution, in order: 29 thousand in all three; 0.2 s, once."""
    solvable = countdown.solvable()
    return [
        (digits, target)
        for digits in combinations_with_replacement(range(1, 10), countdown.NUM_DIGITS)
        for target in countdown.TARGETS
        if (digits, target) not in solvable and countdown.split_of(digits, target) == split
    ]


def demonstrations(rng: Random, count: int) -> list[tuple[str, str]]:
    """Countdown's, some of which abstain: a share HOPELESS_SHOWN that has no solution, and DECLINED of the others.

    A model that learns from them answers nearly everything, and abstains now and then, more often with reason.
    """
    return [_demonstration(rng, *pair) for pair in countdown.demonstrations(rng, count)]


def _demonstration(rng: Random, prompt: str, text: str) -> tuple[str, str]:
    if rng.random() < HOPELESS_SHOWN:
        numbers = [int(number) for number in prompt.partition("=")[0].split()]
        return countdown.write_prompt(numbers, _hopeless_target(rng, numbers)), ABSTENTION
    return prompt, ABSTENTION if rng.random() < DECLINED else text


def _hopeless_target(rng: Random, numbers: list[int]) -> int:
    """A target of the train split that the numbers do not reach."""
    digits, known = tuple(sorted(numbers)), countdown.solvable()
    targets = [t for t in countdown.TARGETS if (digits, t) not in known and countdown.split_of(digits, t) == "train"]
    return rng.choice(targets)


def _problem(numbers: list[int], target: int, has_solution: bool) -> Problem:
    name = f"countdown-{'-'.join(map(str, sorted(numbers)))}={target}"
    row = {"numbers": list(numbers), "target": target, "has_solution": has_solution}
    return Problem(name, countdown.write_prompt(numbers, target), row)


COUNTDOWN_ABSTAIN = replace(
    countdown.COUNTDOWN,
    reward=reward,
    read_row=read_row,
    generate=generate,
    demonstrations=demonstrations,
    measures=measures,
)
