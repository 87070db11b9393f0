"""One-digit arithmetic for a pretrained model that has seen no instructions: eight solved lines, then one to finish.

    7-2=5
    …
    6*8=

The reward reads the completion's first line. All 300 problems a∘b (0 ≤ a, b ≤ 9, ∘ one of + − ×) are split once by a
fixed seed; the solved lines are drawn from the training part, other ones for every problem.
"""

import json
import random
from pathlib import Path

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
NUM_SHOTS, NUM_TEST = 8, 100


def reward(prompt: str, completion: str, *, answer: str, **row: object) -> float:
    """1 where the first line is the answer. Completions are compared as text, never computed."""
    return float(completion.partition("\n")[0].strip() == answer)


def problems() -> tuple[list[dict], list[dict]]:
    """(training, test) rows with `prompt` and `answer`."""
    generator = random.Random(0)
    everything = [
        (f"{a}{sign}{b}=", str(compute(a, b)))
        for sign, compute in OPERATIONS.items()
        for a in range(10)
        for b in range(10)
    ]
    generator.shuffle(everything)
    solved = everything[NUM_TEST:]

    def row(problem: str, answer: str) -> dict:
        shots = generator.sample([pair for pair in solved if pair[0] != problem], NUM_SHOTS)
        return {"prompt": "".join(f"{p}{a}\n" for p, a in shots) + problem, "answer": answer}

    return [row(*pair) for pair in solved], [row(*pair) for pair in everything[:NUM_TEST]]


def write(folder: Path) -> None:
    """train.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), problems(), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
