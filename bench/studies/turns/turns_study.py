"""Credit by turns in a closed world: does a policy's ΔBelief know what a question told, and does it teach asking?

    python bench/studies/turns/turns_study.py                  every cell, seed by seed; what is there is kept
    python bench/studies/turns/turns_study.py --only grpo rlvmr --seeds 1
    python bench/studies/turns/turns_study.py --num-steps 2 --results /tmp/dry.json --work /tmp/dry      a dry run

One process, one thread: train, then 200 held-out games (games.py). Rows go to bench/studies/results/turns.json, of
which turns_report.py makes the tables. The two initial models are made first, where they are not there.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent))

from games import play

from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig, WarmupConfig
from fastrl.config.settings import with_settings
from fastrl.run.training import train
from fastrl.warmup import warmup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BELIEF = {  # beside an objective: what a turn adds to the belief alone, the reward being the objective's
    "algorithm.signals": ("delta-belief",),
    "algorithm.delta_belief.elicit": "=",
    "algorithm.delta_belief.truth": "{secret}",
    "algorithm.delta_belief.outcome": 0.0,
}
PLAIN = {"algorithm.objective": "grpo", "algorithm.signals": ()}
CELLS: dict[str, tuple[str, dict[str, object]]] = {  # name → (file in configs/, what it changes)
    "grpo": ("twenty-questions", {}),
    "grpo+belief": ("twenty-questions", BELIEF),
    "nsr": ("twenty-questions", {"algorithm.objective": "nsr"}),
    "nsr+belief": ("twenty-questions", {"algorithm.objective": "nsr"} | BELIEF),
    "delta-belief": ("delta-belief", {}),
    "tagged.grpo": ("rlvmr", PLAIN),
    "rlvmr": ("rlvmr", {}),
    "rlvmr.tags-alone": ("rlvmr", {"algorithm.rlvmr.alpha": 0.0}),
}
BASES = {"base": "twenty-questions", "tagged.base": "rlvmr"}
STARTS = {"twenty-questions": "twenty-questions", "delta-belief": "twenty-questions", "rlvmr": "tagged-questions"}


@dataclass
class Study:
    """What to run."""

    only: tuple[str, ...] = ()
    """Names of cells; empty: all."""
    seeds: tuple[int, ...] = (1, 2)
    num_steps: int = 40
    num_games: int = 200
    lr: float = 1e-4
    prompts: int = 32
    """Games a step, eight conversations of each."""
    work: Path = ROOT / "runs" / "turns"
    results: Path = HERE.parent / "results" / "turns.json"


def config_of(study: Study, config: str, settings: dict[str, object], folder: Path, seed: int) -> TrainConfig:
    """A file of configs/ at the study's size."""
    common = {
        "model.path": str(start(study.work, STARTS[config])),
        "model.device": "cpu",
        "task.num_test": study.num_games,
        "task.num_workers": 1,
        "batch.prompts_per_step": study.prompts,
        "optimizer.lr": study.lr,
        "evaluation.at_end": False,
        "run.folder": str(folder),
        "run.seed": seed,
        "run.num_steps": study.num_steps,
        "run.checkpoint_every": study.num_steps,
        "run.keep_last": 1,
        "run.scored_rollouts": 32,
        "run.sinks": (),
    }
    return with_settings(load_config(TrainConfig, ROOT / "configs" / f"{config}.toml"), common | settings)


def start(work: Path, name: str) -> Path:
    """An initial model, which configs/NAME-warmup.toml makes."""
    folder = work / f"start-{name}"
    if not (folder / "config.json").exists():
        config = load_config(WarmupConfig, ROOT / "configs" / f"{name}-warmup.toml")
        changes = {"output": str(folder)}
        if name == "tagged-questions":
            changes["model.path"] = str(start(work, "twenty-questions"))
        warmup(with_settings(config, changes))
    return folder


def run_cell(study: Study, name: str, seed: int) -> dict:
    """Train, then play; what was trained before is not trained again."""
    config_name, settings = CELLS[name]
    folder = study.work / f"{name}.seed{seed}"
    config = config_of(study, config_name, settings, folder, seed)
    last = folder / "checkpoints" / f"step-{study.num_steps:06d}"
    if not (last / "config.json").exists():
        train(config, resume=(folder / "config.toml").exists())
    sizes = {"num_steps": study.num_steps, "lr": study.lr, "rollouts": 8 * study.prompts}
    return {"name": name, "seed": seed} | sizes | play(config, last, seed)


def run_base(study: Study, name: str, seed: int) -> dict:
    config = config_of(study, BASES[name], {}, study.work / name, seed)
    return {"name": name, "seed": seed, "num_steps": 0} | play(config, Path(config.model.path), seed)


def main(study: Study) -> None:
    torch.set_num_threads(1)
    if unknown := set(study.only) - {*BASES, *CELLS}:
        sys.exit(f"no cell {', '.join(sorted(unknown))}; there are {', '.join((*BASES, *CELLS))}")
    rows = json.loads(study.results.read_text()) if study.results.exists() else []
    done = {(row["name"], row["seed"]) for row in rows}
    for seed in study.seeds:
        for name in study.only or (*BASES, *CELLS):
            if (name, seed) in done:
                continue
            begin = time.process_time()
            rows.append(run_base(study, name, seed) if name in BASES else run_cell(study, name, seed))
            rows.sort(key=lambda row: (row["name"], row["seed"]))
            study.results.parent.mkdir(parents=True, exist_ok=True)
            study.results.write_text(json.dumps(rounded(rows), separators=(",", ":")) + "\n")
            print(f"{name}, seed {seed}: {(time.process_time() - begin) / 60:.1f} CPU minutes", flush=True)


def rounded(value: object) -> object:
    """Floats to four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main(tyro.cli(Study))
