"""The reward of whole iterations: mathematics, judged by the task's own reader, of an answer put behind random text.

A hash of the completion decides which of two fractions stands behind it, so that about half of all completions are
correct and each is searched and compared for real. What it costs is bounded by BOUND characters.
"""

import zlib

from fastrl.tasks.math import MathReward

BOUND = 4096
ANSWERS = (r"\frac{6}{9}", r"\frac{14}{20}")  # two thirds, and something else


def reward(prompt: str, completion: str, **row: object) -> float:
    which = zlib.crc32(completion.encode("utf-8", "surrogatepass")) % 2
    text = f"{completion[:BOUND]} so the answer is \\boxed{{{ANSWERS[which]}}}."
    return MathReward()(prompt, text, answer=row["answer"]).reward
