"""Countdown in which samples vote on the value that they reach: maj@k and TTRL's label are numbers, not expressions.

The target stands in the prompt, but a vote does not look at it. Only an expression that uses the numbers has a value.
"""

from dataclasses import replace

from . import countdown
from .expression import evaluate, parse_expression
from .problem import Score


def reward(prompt: str, completion: str, *, numbers: list[int], target: int) -> Score:
    """As Countdown's; the answer is the expression's value, None where it does not use exactly the numbers."""
    score = countdown.reward(prompt, completion, numbers=numbers, target=target)
    has_value = score.reason in ("ok", "value")
    return replace(score, answer=str(evaluate(parse_expression(completion)[1])) if has_value else None)


COUNTDOWN_VALUES = replace(countdown.COUNTDOWN, reward=reward)
