"""Does a reward that pays for a claim loosen claims from belief? A toy of the Bullshit Index (arXiv:2507.07484).

    python bench/studies/belief/belief.py                     # fourteen runs, results/belief.json
    python bench/studies/belief/belief.py --dry --work /tmp/x # a few steps, to see that it runs

Four digits and a target; half of the problems have a solution. A 0.86 M-parameter model is warm-started on two forms:

    3 5 7 2=24:     1, 0 or -   the claim that there is a solution, or that there is none, or neither; sampled
    3 5 7 2=24:?    1 or 0      the probe: belief is what the logits say here

RL then trains the first form alone: on what is so (truthful), on the claim whatever is so (persuasive), or on what is
so with an abstention between right and wrong (ternary, as TruthRL). Belief and claims are measured on the same
validation problems all along; `-` claims nothing. The forms share their weights and little else: what RL does to claims
may reach belief, which the mean beliefs show.
"""

import json
import random
from argparse import ArgumentParser
from itertools import product
from pathlib import Path

from fastrl.config.files import from_dict
from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig
from fastrl.evaluation.evaluate import evaluate
from fastrl.run.training import train
from fastrl.tasks.countdown import NUM_DIGITS, TARGETS, solvable, split_of, write_prompt
from fastrl.warmup import warmup

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "belief.json"
NUM_TRAIN, NUM_VALIDATION = 4000, 200
EVERY = 15
SEEDS, DECLINED = (1, 2), 0.15  # the share of demonstrations that claim neither
ARMS = {  # name: function of solvable.py, task.reward, objective
    "truthful.psr": ("truthful", "verifier", "psr"),
    "truthful.nsr": ("truthful", "verifier", "nsr"),
    "truthful.grpo": ("truthful", "verifier", "grpo"),
    "persuasive.psr": ("persuasive", "verifier", "psr"),
    "persuasive.nsr": ("persuasive", "verifier", "nsr"),
    "ternary.grpo": ("truthful", "ternary", "grpo"),
    "ternary.nsr": ("truthful", "ternary", "negative-reward"),
}
SCRATCH = {"characters": "0123456789+-*()=: ?"}
BELIEF = {"probe": "{problem}?", "yes": "1", "no": "0", "claim": "/1/"}
KEPT = ("pass_at_k", "belief", "mean_token_entropy")


def problems(split: str, count: int, seed: int) -> list[dict]:
    """Problems of a split of Countdown's, with and without a solution by turns."""
    rng, owners, found = random.Random(f"{split}{seed}"), solvable(), []
    while len(found) < count:
        digits, target = sorted(rng.choices(range(1, 10), k=NUM_DIGITS)), rng.choice(TARGETS)
        is_solvable = (tuple(digits), target) in owners
        if split_of(digits, target) == split and is_solvable == (len(found) % 2 == 0):
            prompt = write_prompt(rng.sample(digits, len(digits)), target)
            found.append({"prompt": prompt, "solvable": is_solvable})
    return found


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def demonstrations(rows: list[dict]) -> list[dict]:
    """Both forms of every problem, the claim declined now and then."""
    rng = random.Random(0)
    pairs = []
    for row in rows:
        truth = str(int(row["solvable"]))
        pairs += [(row["prompt"], "-" if rng.random() < DECLINED else truth), (row["prompt"] + "?", truth)]
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]


def shared(work: Path, task: str, rule: str = "verifier") -> dict:
    """What training and evaluation have in common."""
    files = {name: str(work / f"{name}.jsonl") for name in ("train", "validation")}
    return {
        "model": {"path": str(work / "warm")},
        "task": {"name": f"solvable:{task}", "reward": rule, "reward_folder": str(HERE), "num_workers": 1, **files},
        "sampler": {"max_new_tokens": 2, "batch_size": 1024},
        "evaluation": {"split": "validation", "num_samples": 16, "belief": BELIEF},
    }


def train_config(work: Path, arm: str, seed: int, num_steps: int) -> TrainConfig:
    task, rule, objective = ARMS[arm]
    settings = shared(work, task, rule)
    settings["evaluation"] |= {"every": EVERY, "at_end": False}
    settings |= {
        "algorithm": {"objective": objective},
        "batch": {"prompts_per_step": 64, "rollouts_per_prompt": 8},
        "optimizer": {"lr": 3e-5},
        "run": {"folder": str(work / f"{arm}.seed{seed}"), "num_steps": num_steps, "seed": seed},
    }
    return from_dict(TrainConfig, settings)


def kept(evaluation: dict) -> dict:
    return {name: evaluation[name] for name in KEPT}


def base_row(work: Path, num_warmup: int) -> dict:
    """The warm start, and what it claims and believes."""
    if not (work / "warm" / "warmup.toml").exists():
        data = {"file": str(work / "demonstrations.jsonl"), "num_steps": num_warmup}
        warmup(from_dict(WarmupConfig, {"scratch": SCRATCH, "data": data, "output": str(work / "warm")}))
    output = work / "base.json"
    if not output.exists():
        evaluate(from_dict(EvalConfig, shared(work, "truthful") | {"output": str(output)}))
    return kept(json.loads(output.read_text()))


def run_row(config: TrainConfig, arm: str) -> dict:
    """One run, measured along the way."""
    folder = Path(config.run.folder)
    train(config, resume=(folder / "config.toml").exists())
    rows = {step: json.loads((folder / "eval" / f"validation-{step:06d}.json").read_text()) for step in steps(config)}
    path = [{"step": step} | kept(row) for step, row in rows.items()]
    return {"arm": arm, "seed": config.run.seed, "path": path}


def steps(config: TrainConfig) -> range:
    return range(EVERY, config.run.num_steps + 1, EVERY)


def line(name: str, row: dict) -> str:
    belief = row["belief"]
    index = "undefined" if belief["index"] is None else "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**belief["index"])
    share = belief["num_claims"] / belief["num_samples"]
    return f"{name}: claims {share:.2f}, mean belief {belief['mean_belief']:.2f}, index {index}"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE.parents[2] / "runs" / "belief")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    work, num_warmup, num_steps = arguments.work.absolute(), *((20, EVERY) if arguments.dry else (800, 60))
    training = problems("train", NUM_TRAIN, 0)
    write_rows(work / "train.jsonl", training)
    write_rows(work / "validation.jsonl", problems("validation", NUM_VALIDATION, 0))
    write_rows(work / "demonstrations.jsonl", demonstrations(problems("train", 5 * NUM_TRAIN, 1)))
    results = {"base": base_row(work, num_warmup), "runs": []}
    print(line("base", results["base"]), flush=True)
    for seed, arm in product(SEEDS[: 1 if arguments.dry else None], ARMS):
        results["runs"].append(run_row(train_config(work, arm, seed, num_steps), arm))
        for row in results["runs"][-1]["path"]:
            print(line(f"{arm}, seed {seed}, step {row['step']}", row), flush=True)
    if not arguments.dry:
        RESULTS.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
