"""Countdown with a stated confidence: `3 5 7 2=24:` is completed by `5*7-3*2:8`.

The digit d behind the colon states a probability of being right of (d + ½) / 10, the middle of its tenth.
"""

from dataclasses import replace
from random import Random

from . import countdown
from .problem import Score

DIGITS = "0123456789"


def reward(prompt: str, completion: str, *, numbers: list[int], target: int) -> Score:
    """Countdown's score of what stands before the colon; 0 without a confidence (reason: confidence)."""
    if read_confidence(completion) is None:
        return Score(0.0, "confidence")
    return countdown.reward(prompt, completion.rpartition(":")[0], numbers=numbers, target=target)


def read_confidence(completion: str) -> float | None:
    """The probability that the last character states, None where it is no digit behind a colon."""
    _, colon, digit = completion.strip(" ").rpartition(":")
    is_stated = colon and len(digit) == 1 and digit in DIGITS
    return (int(digit) + 0.5) / 10 if is_stated else None


def demonstrations(rng: Random, count: int) -> list[tuple[str, str]]:
    """Countdown's, each with a digit at random: a model that learns from them states confidence, and knows nothing."""
    return [(prompt, f"{text}:{rng.choice(DIGITS)}") for prompt, text in countdown.demonstrations(rng, count)]


COUNTDOWN_CONFIDENCE = replace(
    countdown.COUNTDOWN,
    reward=reward,
    demonstrations=demonstrations,
    solutions=None,
    read_confidence=read_confidence,
)
