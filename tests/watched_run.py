"""A run folder made by hand: what a run writes, with texts that would do harm where they are not taken as texts."""

import gzip
import json
from pathlib import Path

from fastrl.config.files import to_toml
from fastrl.config.schema import TrainConfig

MARKUP = '<img src=x onerror="window.harmed=1"></script><script>window.harmed=2</script><!--'
TURNED = "left \u202egnirts\u202c \u0000 \u200b \ud800 end"
LONG = "x" * 1_000_000
PIECES = ["<img src=x", ' onerror="window.harmed=1">', "</script>", "<script>window.harmed=2</script>", "<!--"]


def rollout(text: str, number: int, **other: object) -> dict:
    return {
        "problem_id": f"p-{number}",
        "prompt": f"Problem {number}?",
        "completion": text,
        "reward": float(number % 2),
        "penalty": 0.0,
        "reason": "ok" if number % 2 else "wrong",
        "advantage": 1.0 if number % 2 else -1.0,
        "finish_reason": "stop",
        "group": number,
        "weight_version": 0,
        "completion_ids": [1, 2],
        "pieces": [text[:1], text[1:]],
        "sampler_logprobs": [-1.0, -2.0],
        "trainer_logprobs": [-1.5, -2.0],
        "updated_logprobs": [-1.0, -2.5],
        "entropy": [0.5, 0.25],
        **other,
    }


def write_gzip(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))


def metrics(step: int, **other: object) -> dict:
    signs = {"rollouts/num_positive": 3, "rollouts/num_negative": 5, "rollouts/num_zero": 0}
    rewards = {"reward/mean": step / 10, "reward/format": 0.5, MARKUP: 1.0}
    return {"step": step, **signs, **rewards, "entropy/mean": 1.0, "time/train_s": 2.0, "time/generate_s": 1.0, **other}


def write_run(folder: Path, num_steps: int = 3) -> Path:
    """Steps of six rollouts each: markup, turned text, a long one, three plain ones; two evaluations; a ledger."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(TrainConfig()))
    lines = [metrics(step, warnings=MARKUP) for step in range(1, num_steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(1, num_steps + 1):
        uneven = {"advantage": None, "credits": [-1.0, -0.5, 0.0, 0.5, 1.0], "pieces": PIECES}
        rows = [rollout(MARKUP, 0, completion_ids=[1, 2, 3, 4, 5], **uneven), rollout(TURNED, 1), rollout(LONG, 2)]
        rows += [rollout(f"plain {n} of {step}", n) for n in (3, 4, 5)]
        write_gzip(folder / "rollouts" / f"step-{step:06d}.jsonl.gz", rows)
    for name, step in (("validation-000001", 1), ("validation-000002", 2)):
        write_evaluation(folder / "eval" / f"{name}.json", step)
    mass = {"correct": 0.2, "penalised": 0.3, "other_wrong": 0.1, "rest": 0.4}
    now = {"correct": 0.25, "penalised": 0.1, "other_wrong": 0.2, "rest": 0.45}
    moved = {"left_penalised": 0.2, "to_correct": 0.05, "to_other_wrong": 0.1, "to_rest": 0.05}
    measured = [{"step": 0, "mass": mass, "base_mass": mass, "moved": dict.fromkeys(moved, 0.0)}]
    measured += [{"step": 2, "mass": now, "base_mass": mass, "moved": moved}]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured))
    return folder


def write_evaluation(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    curve = {str(k): {"mean": 0.1 * k, "low": 0.05 * k, "high": 0.15 * k} for k in (1, 2, 4)}
    problems = [{"id": f"p-{n}", "num_correct": n, "num_samples": 4} for n in range(3)]
    scalars = {"mean_length": 9.0, "mean_token_entropy": 0.5, "truncated_share": 0.0, "num_problems": 3}
    evaluation = {"pass_at_k": curve, "problems": problems, "step": step, "split": "validation", "num_samples": 4}
    path.write_text(json.dumps(evaluation | scalars))
    kept = [
        {"problem_id": f"p-{n}", "prompt": [{"role": "user", "content": MARKUP}], "sample": s, "completion": text}
        | {
            "reward": 1.0,
            "is_correct": s == 0,
            "reason": "ok",
            "answer": MARKUP,
            "num_tokens": 5,
            "finish_reason": "stop",
        }
        for n in range(3)
        for s, text in enumerate((MARKUP, TURNED))
    ]
    write_gzip(path.with_name(path.stem + ".completions.jsonl.gz"), kept)
