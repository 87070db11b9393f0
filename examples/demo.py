"""The paper's figure on a laptop: evaluate a warm-started model, train PSR and NSR from it, compare their pass@k.

    python examples/demo.py [--seed N] [--output runs/demo]

Writes OUTPUT/{base,psr,nsr}/eval/test.json, OUTPUT/pass_at_k.png and OUTPUT/summary.md. The three run side by side;
PSR and NSR have the same config and seed: only the objective differs. The seed changes prompts' order and every
draw, in training and in evaluation; the problems of the test split are fixed and disjoint from training and validation.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from fastrl.records.plot import plot_pass_at_k
from fastrl.records.tables import difference_table, pass_table

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "countdown.toml"
OBJECTIVES = ("psr", "nsr")


@dataclass
class Demo:
    """Settings of the demo."""

    seed: int = 1
    output: Path = Path("runs/demo")
    num_steps: int = 150
    num_samples: int = 256
    """Completions per test problem."""
    num_problems: int = 500
    """Test problems."""


def fastrl(*arguments: str) -> subprocess.Popen:
    """The command line in a process of its own, with its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // (1 + len(OBJECTIVES)))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen([sys.executable, "-m", "fastrl.cli", *arguments], env=environment, cwd=ROOT)


def wait_for(*processes: subprocess.Popen) -> None:
    """Wait for all; a failure of one ends the demo with its exit status."""
    for process in processes:
        if process.wait():
            for other in processes:
                other.terminate()
            sys.exit(process.returncode)


def start_base(demo: Demo, path: Path) -> subprocess.Popen:
    arguments = ["--model.path", str(ROOT / "models" / "countdown"), "--task.num-test", str(demo.num_problems)]
    arguments += ["--evaluation.num-samples", str(demo.num_samples), "--evaluation.seed", str(demo.seed)]
    arguments += ["--sampler.max-new-tokens", "16", "--sampler.batch-size", "1024", "--output", str(path)]
    return fastrl("eval", *arguments)


def start_training(demo: Demo, folder: Path, objective: str) -> subprocess.Popen:
    arguments = ["--algorithm.objective", objective, "--run.folder", str(folder), "--run.seed", str(demo.seed)]
    arguments += ["--run.num-steps", str(demo.num_steps), "--task.num-test", str(demo.num_problems)]
    arguments += ["--model.path", str(ROOT / "models" / "countdown")]
    arguments += ["--evaluation.num-samples", str(demo.num_samples), "--evaluation.seed", str(demo.seed)]
    return fastrl("train", str(CONFIG), *arguments)


def summarise(demo: Demo, folder: Path, wall_time_s: float) -> str:
    """Figure and tables from the three evaluation files; returns the summary's text."""
    evaluations = {
        name: json.loads((folder / name / "eval" / "test.json").read_text()) for name in ("base", *OBJECTIVES)
    }
    caption = (
        f"Countdown; {demo.num_problems} held-out problems x {demo.num_samples} samples, seed {demo.seed}, "
        f"{demo.num_steps} steps of PSR and of NSR from the same 0.86 M-parameter model. "
        f"{wall_time_s / 60:.1f} minutes in all on {os.cpu_count()} CPU cores."
    )
    plot_pass_at_k(evaluations, folder / "pass_at_k.png", title="Positive or negative reinforcement?", caption=caption)
    pairs = {
        f"{a.upper()} − {b.upper() if b != 'base' else b}": (evaluations[a], evaluations[b])
        for a, b in (("psr", "base"), ("nsr", "base"), ("nsr", "psr"))
    }
    return f"{caption}\n\n{pass_table(evaluations)}\n\nPaired differences:\n\n{difference_table(pairs)}\n"


def main(demo: Demo) -> None:
    folder = demo.output.resolve()
    if folder.exists():
        older = next(p for n in itertools.count(1) if not (p := folder.with_name(f"{folder.name}.{n}")).exists())
        folder.rename(older)
        print(f"the earlier demo is now in {older}")
    start = time.perf_counter()
    runs = [start_training(demo, folder / objective, objective) for objective in OBJECTIVES]
    wait_for(*runs, start_base(demo, folder / "base" / "eval" / "test.json"))
    summary = summarise(demo, folder, time.perf_counter() - start)
    (folder / "summary.md").write_text(summary)
    print(f"{summary}\nfigure: {folder / 'pass_at_k.png'}\nresults: {folder}")


if __name__ == "__main__":
    main(tyro.cli(Demo))
