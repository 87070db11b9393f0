"""Packed against padded micro-batches: forward, loss and backward of one update, skewed lengths, the same token budget.

    python bench/bench_packing.py              writes bench/results/packing.json
    python bench/bench_packing.py --dry        a tiny model and two rounds; writes nothing

Paired: the two take turns on the same rollouts, and the ratio is that of each pair. Lengths are log-normal, as answers
are: most short, a few at the limit. Gradients of both are compared before anything is timed.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from fastrl.kernels import TokenLoss
from fastrl.policy.attention import choose_attention
from fastrl.policy.micro_batch import computed_tokens, num_inputs_R
from fastrl.policy.model import Policy
from fastrl.policy.soundness import pack
from fastrl.rollouts import Rollouts

SHAPES = {
    "full": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 8000},
    "dry": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 500},
}
LONGEST, BUDGET, NUM_ROLLOUTS, PROMPT = 1024, 4096, 32, 32
WIDTHS = {"even": 0.0, "skewed": 0.6, "very skewed": 1.0}  # standard deviation of the log-length


def make_model(shape: dict[str, int]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(**shape, num_attention_heads=8, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    choice = pack(model, choose_attention("auto", model.device, model.dtype, config))
    assert choice.is_packed, choice
    return model


def make_rollouts(width: float, longest: int, vocab: int) -> Rollouts:
    """Completions of longest/4·exp(width·N(0,1)) tokens, cut at `longest`."""
    generator = random.Random(0)
    lengths = [min(longest, max(2, int(longest / 4 * generator.lognormvariate(0, width)))) for _ in range(NUM_ROLLOUTS)]
    rows = [[generator.randrange(vocab) for _ in range(PROMPT + length)] for length in lengths]
    credits_N = np.full(sum(lengths), -1.0, dtype=np.float32)
    return Rollouts.of([r[:PROMPT] for r in rows], [r[PROMPT:] for r in rows], credits_N=credits_N)


def update(policy: Policy, rollouts: Rollouts, budget: int) -> dict[str, float]:
    """Gradients of one update into .grad; its seconds, micro-batches and tokens computed."""
    policy.zero_grad()
    start = time.perf_counter()
    parts = [rollouts.take(part) for part in policy.cut(rollouts, budget)]
    total = num_inputs_R(rollouts).sum()
    for part in parts:
        policy(policy.micro_batch(part, np.full(len(part), 1.0 / total))).loss.backward()
    seconds = time.perf_counter() - start
    computed = sum(computed_tokens(part, is_packed=policy.is_packed) for part in parts)
    return {"seconds": seconds, "micro_batches": len(parts), "efficiency": total / computed}


def compare(width_name: str, model: PreTrainedModel, rounds: int, longest: int, budget: int) -> dict:
    """One row: medians, p20 and p80 of each side, and of padded/packed pair by pair."""
    rollouts = make_rollouts(WIDTHS[width_name], longest, model.config.vocab_size)
    policy, packed = Policy(model, TokenLoss()), model.config._attn_implementation
    runs: dict[str, list[dict[str, float]]] = {"packed": [], "padded": []}
    gradients = {}
    for _ in range(rounds + 1):
        for who, implementation in (("packed", packed), ("padded", "sdpa")):
            model.set_attn_implementation(implementation)
            runs[who].append(update(policy, rollouts, budget))
            gradients[who] = [p.grad.clone() for p in model.parameters()]
    model.set_attn_implementation(packed)
    worst = max(
        ((a - b).norm() / b.norm()).item() for a, b in zip(gradients["packed"], gradients["padded"], strict=True)
    )
    assert worst < 1e-3, f"gradients differ by {worst}"
    row = {"lengths": width_name, "gradient_difference": worst}
    for who, results in runs.items():
        row[who] = spread([1e3 * r["seconds"] for r in results[1:]]) | {
            key: results[0][key] for key in ("micro_batches", "efficiency")
        }
    pairs = zip(runs["padded"][1:], runs["packed"][1:], strict=True)
    return row | {"padded_over_packed": spread([a["seconds"] / b["seconds"] for a, b in pairs])}


def spread(values: list[float]) -> dict[str, float]:
    """Median, p20 and p80 (milliseconds or a ratio)."""
    p20, *_, p80 = statistics.quantiles(values, n=5)
    return {"median": round(statistics.median(values), 3), "p20": round(p20, 3), "p80": round(p80, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny, two rounds, nothing is written")
    dry = parser.parse_args().dry
    model = make_model(SHAPES["dry" if dry else "full"])
    longest, budget, rounds = (128, 512, 2) if dry else (LONGEST, BUDGET, 7)
    rows = [compare(name, model, rounds, longest, budget) for name in WIDTHS]
    result = {"machine": machine(), "command": "python bench/bench_packing.py", "budget": budget, "rows": rows}
    print(json.dumps(result, indent=1))
    if not dry:
        path = Path(__file__).parent / "results" / "packing.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
