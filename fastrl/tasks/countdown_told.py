"""Countdown whose demonstrations read critiques, for the warm start of a model that is to try again.

Problems and rewards are those of `countdown`. Behind a problem may stand an earlier try and a critique of it; what
comes then is a correct expression:

    3 5 7 2=24:                       3*7+5-2         as in countdown
    3 5 7 2=24:3*7-5*2=-:             3*7+5-2         it is wrong (+: it is right, and is written again)
    3 5 7 2=24:3*7-5*2=- 3*7+5-2:     3*7+5-2         it is wrong, and this is right
    3 5 7 2=24:3*7-5*2=11:            3*7+5-2         what `countdown_critique` finds
    3 5 7 2=24:3*7-5*2=               11              the critique itself is to be written

`HINT`, `QUESTION`, `RIGHT`, `WRONG` and `ANSWER` are the settings of `[algorithm.critique]` that ask so.
"""

from dataclasses import replace
from random import Random

from .countdown import COUNTDOWN, demonstrations
from .countdown_critique import critique

QUESTION, HINT = "{completion}=", "{completion}={critique}:"
RIGHT, WRONG, ANSWER = "+", "-", " {answer}"
PLAIN_SHARE = 1 / 3  # of the demonstrations have no earlier try


def told_demonstrations(rng: Random, count: int) -> list[tuple[str, str]]:
    """`count` pairs (prompt, completion) of the train split, a third of them those of `countdown`.

    The earlier try is, one time in four each, the solution itself and the solution with a digit replaced, else another
    expression of the digits.
    """
    solved = demonstrations(rng, count)
    return [pair if rng.random() < PLAIN_SHARE else _told(rng, *pair) for pair in solved]


def _told(rng: Random, prompt: str, solution: str) -> tuple[str, str]:
    row = _row(prompt)
    attempt = rng.choice((_other, _other, _corrupted, _same))(rng, solution)
    found = critique(attempt, row)
    is_right = found == str(row["target"])
    word = RIGHT if is_right else WRONG
    solution = attempt if is_right else solution
    said = rng.choice((word, word + ANSWER.replace("{answer}", solution), found, None))
    if said is None:
        return prompt + QUESTION.replace("{completion}", attempt), found
    return prompt + HINT.replace("{completion}", attempt).replace("{critique}", said), solution


def _row(prompt: str) -> dict:
    numbers, _, target = prompt.rstrip(":").partition("=")
    return {"numbers": [int(number) for number in numbers.split()], "target": int(target)}


def _same(rng: Random, solution: str) -> str:
    return solution


def _corrupted(rng: Random, solution: str) -> str:
    """With one digit replaced by a random one."""
    place = rng.choice([i for i, sign in enumerate(solution) if sign.isdigit()])
    return solution[:place] + str(rng.randint(1, 9)) + solution[place + 1 :]


def _other(rng: Random, solution: str) -> str:
    """With its digits in another order and other operators between them, the parentheses where they were."""
    digits = [sign for sign in solution if sign.isdigit()]
    rng.shuffle(digits)
    return "".join(
        digits.pop() if sign.isdigit() else rng.choice("+-*") if sign in "+-*" else sign for sign in solution
    )


COUNTDOWN_TOLD = replace(COUNTDOWN, demonstrations=told_demonstrations)
