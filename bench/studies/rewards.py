"""Training rewards of the controls, for tasks `rewards:<function>`. Evaluation always uses the true verifier."""

import random

from fastrl.tasks.countdown import reward

COIN = 0.25  # about the share of correct samples of the initial model, so that as many rollouts are kept


def coin(prompt: str, completion: str, **row) -> float:
    """1 with probability COIN, whatever was written: an independent draw per sample, different in every repetition."""
    return float(random.random() < COIN)


def inverted(prompt: str, completion: str, **row) -> float:
    """Correct is wrong and wrong is correct."""
    return 1.0 - reward(prompt, completion, **row).reward
