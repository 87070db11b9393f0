"""Golden runs: short training runs of every kind, recorded before a change of structure and compared after it.

    python bench/golden.py record before.json        python bench/golden.py compare before.json after.json

A record holds, of each run, the metrics of its steps and a hash of its final weights. Bitwise equality is to be
expected on one machine only: processors and thread counts add in different orders. Times and memory are left out.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from fastrl.records.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
NUM_STEPS = 10
COMMON = {
    "batch.prompts_per_step": 8,
    "optimizer.lr": 1e-4,
    "evaluation.at_end": False,
    "run.num_steps": NUM_STEPS,
    "run.checkpoint_every": 5,
    "run.scored_rollouts": 16,
    "task.num_workers": 1,
}
FOUR = {"algorithm.updates_per_batch": 4}
SCENARIOS: dict[str, dict[str, object]] = {
    **{
        f"{objective}.u{updates}": {"algorithm.objective": objective, "algorithm.updates_per_batch": updates}
        for objective in ("psr", "nsr", "grpo", "w-reinforce")
        for updates in (1, 4)
    },
    "penalties": FOUR | {"algorithm.kl_coef": 0.05, "algorithm.entropy_coef": 0.01},
    "paper-code": FOUR | {"algorithm.preset": "paper-code"},
    "lora": FOUR | {"model.lora_rank": 4},
    "ledger": FOUR | {"ledger.every": 5, "ledger.num_samples": 32, "ledger.gradients": True},
    "evaluated": FOUR | {"evaluation.every": 5, "evaluation.num_samples": 8, "task.num_validation": 20},
    "resumed": FOUR | {"run.num_steps": 5},
    "ranks": FOUR,
    "vllm": FOUR | {"sampler.kind": "vllm"},
}
LEFT_OUT = ("time/", "throughput/", "memory/")


def command_of(name: str, folder: Path, settings: dict[str, object]) -> list[str]:
    """`fastrl train …` of a scenario, on two processes where it asks for them."""
    options = [f for key, value in settings.items() for f in (f"--{key.replace('_', '-')}", str(value))]
    train = ["train", str(ROOT / "configs" / "countdown.toml"), "--model.path", str(ROOT / "models" / "countdown")]
    train += ["--run.folder", str(folder), *options]
    if name == "ranks":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastrl.cli"]
        return [sys.executable, *launcher, *train]
    return [sys.executable, "-m", "fastrl.cli", *train]


def run(name: str, folder: Path) -> dict:
    """Train, and read what was left: metrics, ledger, evaluations, weights."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    settings = COMMON | SCENARIOS[name]
    commands = [command_of(name, folder, settings)]
    if name == "resumed":
        commands.append([*command_of(name, folder, settings | {"run.num_steps": NUM_STEPS}), "--resume"])
    for command in commands:
        process = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"{name} ended with status {process.returncode}:\n{process.stdout}{process.stderr}")
    files = [folder / "metrics.jsonl", folder / "ledger.jsonl"]
    rows = {path.name: [_kept(row) for row in read_jsonl(path)] for path in files if path.exists()}
    weights = sorted((folder / "checkpoints" / f"step-{NUM_STEPS:06d}").glob("*.safetensors"))
    return rows | {"weights": [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]}


def _kept(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith(LEFT_OUT)}


def record(output: Path, /, only: tuple[str, ...] = ()) -> None:
    """Run every scenario, or some, and write the record; about 12 s each on an idle core."""
    found = {}
    for name in only or SCENARIOS:
        with tempfile.TemporaryDirectory() as parent:
            found[name] = run(name, Path(parent) / "run")
        print(f"{name}: weights {found[name]['weights'][0][:12]}", flush=True)
    output.write_text(json.dumps(found) + "\n")


def differences(before: object, after: object, where: str = "") -> dict[str, float]:
    """Where two records differ → by how much, relative to the larger number; inf where they cannot be compared."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = {f"{where}/{k}": (before.get(k), after.get(k)) for k in before | after}
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = {f"{where}[{i}]": pair for i, pair in enumerate(zip(before, after, strict=True))}
    elif isinstance(before, float | int) and isinstance(after, float | int):
        return {} if before == after else {where: abs(before - after) / max(abs(before), abs(after))}
    else:
        return {} if before == after else {where: float("inf")}
    return {key: value for place, pair in pairs.items() for key, value in differences(*pair, place).items()}


def compare(before: Path, after: Path, /, tolerance: float = 0.0) -> None:
    """Say run by run what differs; exit status 1 where a number differs by more than `tolerance`."""
    records = [json.loads(path.read_text()) for path in (before, after)]
    worst = 0.0
    for name in records[0] | records[1]:
        found = differences(*(r.get(name) for r in records))
        numbers = {k: v for k, v in found.items() if not k.startswith("/weights")}
        largest = max(numbers, key=numbers.get, default="")
        worst = max([worst, *numbers.values()])
        said = f"{len(numbers)} numbers differ, {largest} by {numbers[largest]:.2g}" if numbers else "equal metrics"
        print(f"{name}: {said}; weights {'differ' if len(found) > len(numbers) else 'equal'}")
    sys.exit(worst > tolerance)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"record": record, "compare": compare})
