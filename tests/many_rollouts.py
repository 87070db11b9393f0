"""A folder of as many rollouts as asked for, as a run writes them: 64 a step, of which filters find known numbers."""

import gzip
import json
import random
from pathlib import Path

A_STEP = 64


def write_many(folder: Path, num: int, num_tokens: int = 60) -> None:
    """Rollout i: reward i % 2, `needle-i` in the text of every thousandth, problem `p-(i % 500)`."""
    generator = random.Random(0)
    words = [f" {''.join(generator.choices('abcdefghijklmnop', k=4))}" for _ in range(400)]
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, num, A_STEP):
        rows = [_row(i, generator.choices(words, k=num_tokens)) for i in range(start, min(start + A_STEP, num))]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = folder / f"step-{start // A_STEP + 1:06d}.jsonl.gz"
        path.write_bytes(gzip.compress(text.encode(), compresslevel=1, mtime=0))


def _row(i: int, pieces: list[str]) -> dict:
    if i % 1000 == 0:
        pieces[0] = f"needle-{i}"
    numbers = [round(-0.001 * (t + i % 7), 5) for t in range(len(pieces))]
    return {
        "problem_id": f"p-{i % 500}",
        "prompt": "Say something.",
        "completion": "".join(pieces),
        "reward": float(i % 2),
        "penalty": 0.0,
        "reason": "ok" if i % 2 else "wrong",
        "advantage": 0.0 if i % 2 else -1.0,
        "finish_reason": "stop",
        "group": i % 8,
        "weight_version": i // A_STEP,
        "completion_ids": list(range(len(pieces))),
        "pieces": pieces,
        "sampler_logprobs": numbers,
        "trainer_logprobs": numbers,
        "entropy": numbers,
    }
