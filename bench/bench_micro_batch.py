"""A micro-batch from columns: milliseconds on the host, and bytes of a token.

    python bench/bench_micro_batch.py          writes bench/results/micro_batch.json

What a step does for each micro-batch before the forward: `Rollouts.take`, then `build_micro_batch`, packed. Medians,
p20 and p80 of 300 rounds; one thread is enough for both. The bar is 0.5 ms for 16k tokens.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import machine

from fastrl.policy.micro_batch import build_micro_batch
from fastrl.rollouts import Rollouts

SHAPES = {  # (prompts, completions of each, prompt tokens, completion tokens)
    "16 long": (2, 8, 256, 992),
    "64 middling": (8, 8, 64, 248),
    "512 short": (64, 8, 11, 30),
}
ROUNDS = 300


def make(prompts: int, samples: int, prompt: int, completion: int) -> Rollouts:
    generator, num = np.random.default_rng(0), prompts * samples
    rows = np.repeat(generator.integers(0, 1000, (prompts, prompt)), samples, axis=0)
    completions = generator.integers(0, 1000, (num, completion))
    groups = np.repeat(np.arange(prompts), samples)
    return Rollouts.of(rows, completions, groups=groups, credits_N=np.ones(num * completion, dtype=np.float32))


def measure(batch: Rollouts) -> dict:
    """A fresh copy each round, as the updater's: nothing that a batch remembers is there."""
    everyone, weights_R = np.arange(len(batch)), np.ones(len(batch))
    seconds = np.empty((2, ROUNDS))
    for index in range(ROUNDS):
        start = time.perf_counter()
        members = replace(batch).take(everyone)
        middle = time.perf_counter()
        built = build_micro_batch(members, weights_R, weights_R, is_packed=True)
        seconds[:, index] = middle - start, time.perf_counter() - middle
    quantiles = {"median": 0.5, "p20": 0.2, "p80": 0.8}
    found = {"tokens": len(batch.tokens_T), "computed": len(built.input_ids_T)}
    for name, values in (("take_ms", seconds[0]), ("build_ms", seconds[1]), ("both_ms", seconds.sum(0))):
        found[name] = {q: round(1e3 * float(np.quantile(values, share)), 3) for q, share in quantiles.items()}
    found["bytes_per_token"] = round(sum(c.nbytes for _, c in batch.columns()) / len(batch.tokens_T), 2)
    return found


def main() -> None:
    rows = [{"rollouts": name} | measure(make(*shape)) for name, shape in SHAPES.items()]
    result = {"machine": machine(), "command": "python bench/bench_micro_batch.py", "rows": rows}
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "micro_batch.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
