"""Rollouts made on the spot, for tests of what is built from them."""

import random

from fastrl.rollouts import Rollout


def group_of(prompt_length: int, completions: list[int], seed: int) -> list[Rollout]:
    """Rollouts of one prompt."""
    generator = random.Random(seed)
    prompt = [generator.randrange(2, 123) for _ in range(prompt_length)]
    rows = [[generator.randrange(2, 123) for _ in range(length)] for length in completions]
    return [Rollout(list(prompt), r, [0.0] * len(r), "stop", 0, advantage=0.5 - i % 2) for i, r in enumerate(rows)]
