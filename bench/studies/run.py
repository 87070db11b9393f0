"""Run one tier of the study: finished cells are skipped, a killed cell goes on from its last checkpoint.

    python bench/studies/run.py --tier 1        (make study TIER=1)

Each cell is a `fastrl train` and a `fastrl eval` in processes of their own, one thread each, two cells at a time.
"""

import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from cells import (
    FOLLOW_SAMPLES,
    HERE,
    NUM_FOLLOWED,
    NUM_TEST,
    ROOT,
    STARTS,
    Cell,
    cells_of,
    sweeps_needed,
    train_config,
)
from folders import BASE, BASE_FOLLOWED, STUDY, CellFolder, chosen_lr, initial_model, warm_model
from results import read

from fastrl.config.files import to_toml
from fastrl.process.interrupts import Interrupts

BASE_SAMPLES = 256


@dataclass
class Study:
    """What to run."""

    tier: int = 1
    num_workers: int = 2
    only: tuple[str, ...] = ()
    """Names of cells, such as tier1.nsr; empty: all of the tier."""
    seeds: tuple[int, ...] = ()
    """Run these seeds instead of the tier's: for cells whose band straddles 0."""


class Processes:
    """Runs commands, and ends those that are left when one fails or the study is stopped."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.is_stopping = threading.Event()

    def fastrl(self, arguments: list[str], log: Path) -> None:
        """`fastrl …` with its output appended to `log`. RuntimeError when it fails."""
        if self.is_stopping.is_set():
            raise RuntimeError("the study is being stopped")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "fastrl.cli", *arguments]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=HERE)
        self.running.add(process)
        status = process.wait()
        self.running.discard(process)
        if status:
            raise RuntimeError(f"fastrl {arguments[0]} ended with status {status}; see {log}")

    def stop(self) -> None:
        """SIGTERM: a training run saves a checkpoint first."""
        self.is_stopping.set()
        for process in list(self.running):
            process.terminate()


def evaluate(
    processes: Processes,
    model: Path,
    output: Path,
    log: Path,
    *,
    num_samples: int,
    seed: int,
    split: str = "test",
    task: str = "countdown",
) -> None:
    """The test problems, or those followed along the way."""
    arguments = ["eval", str(ROOT / "configs" / "countdown.toml"), "--model.path", str(model), "--output", str(output)]
    arguments += ["--task.name", task, "--task.num-test", str(NUM_TEST), "--task.num-validation", str(NUM_FOLLOWED)]
    arguments += ["--task.num-workers", "1", "--evaluation.split", split]
    arguments += ["--evaluation.seed", str(seed), "--evaluation.num-samples", str(num_samples)]
    processes.fastrl(arguments, log)


def choose_cells(study: Study) -> list[Cell]:
    """The tier's cells, or some of them, with its seeds or others. ValueError for a name it does not have."""
    cells = cells_of(study.tier)
    if unknown := set(study.only) - {c.name for c in cells}:
        raise ValueError(f"tier {study.tier} has no cell {', '.join(sorted(unknown))}")
    chosen = [c for c in cells if not study.only or c.name in study.only]
    if not study.seeds:
        return chosen
    return [replace(c, seed=s) for s in study.seeds for c in {c.name: c for c in chosen}.values()]


def run_cell(processes: Processes, cell: Cell) -> None:
    """Train, then test; whatever is there already is kept."""
    folder = CellFolder(cell)
    start, log = time.perf_counter(), folder.path / "log.txt"
    if not folder.is_trained:
        folder.path.mkdir(parents=True, exist_ok=True)
        lr = chosen_lr(cell.selection) if cell.selection else None
        config = train_config(cell, folder.run, lr=lr, model=initial_model(cell))
        (folder.path / "train.toml").write_text(to_toml(config))
        resume = ["--resume"] if (folder.run / "config.toml").exists() else []
        processes.fastrl(["train", str(folder.path / "train.toml"), *resume], log)
    if not folder.is_finished:
        seed = 1000 + cell.seed
        numbers = {"num_samples": cell.test_samples, "seed": seed}
        evaluate(processes, folder.checkpoint, folder.test, log, task=cell.task, **numbers)
    print(f"{cell.id}: {(time.perf_counter() - start) / 60:.1f} min", flush=True)


def prepare_warm(processes: Processes, steps: int) -> None:
    """A weaker initial model and its evaluation, unless that was collected before."""
    model, log = warm_model(steps), STUDY / f"warm-{steps}.txt"
    if not (model / "warmup.toml").exists():
        arguments = ["warmup", str(ROOT / "configs" / "countdown-warmup.toml"), "--output", str(model)]
        processes.fastrl([*arguments, "--data.num-steps", str(steps)], log)
    is_recorded = f"warm-{steps}" in (read("base") or {})
    if not (tested := STUDY / f"warm-{steps}-base" / "test.json").exists() and not is_recorded:
        evaluate(processes, model, tested, log, num_samples=BASE_SAMPLES, seed=1000)


def prepare_task(processes: Processes, cell: Cell) -> None:
    """For a task of its own: an initial model that can write what it asks for, and the evaluations of that."""
    model, log, tested = initial_model(cell), STUDY / f"{cell.start}.txt", STUDY / f"{cell.start}-base"
    if cell.task in STARTS and not (model / "warmup.toml").exists():
        arguments = ["warmup", str(ROOT / "configs" / f"{STARTS[cell.task]}-warmup.toml"), "--output", str(model)]
        processes.fastrl([*arguments, "--model.path", str(warm_model(0))], log)
    wanted = {"test": cell.test_samples} | ({"validation": FOLLOW_SAMPLES} if cell.is_followed else {})
    for split, num_samples in wanted.items():
        if not (output := tested / f"{split}.json").exists():
            evaluate(processes, model, output, log, num_samples=num_samples, seed=1000, split=split, task=cell.task)


def prepare(processes: Processes, cells: list[Cell], num_workers: int) -> None:
    """What several cells share: the base's evaluation, weaker initial models, those of tasks."""
    has_base = read("base") is not None
    if not BASE.exists() and not has_base:
        evaluate(processes, warm_model(0), BASE, BASE.with_name("log.txt"), num_samples=BASE_SAMPLES, seed=1000)
    if not BASE_FOLLOWED.exists() and not has_base:
        log = BASE.with_name("log.txt")
        evaluate(
            processes, warm_model(0), BASE_FOLLOWED, log, num_samples=FOLLOW_SAMPLES, seed=1000, split="validation"
        )
    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(lambda steps: prepare_warm(processes, steps), sorted({c.warmup for c in cells if c.warmup})))
        own = {c.start: c for c in cells if c.task != "countdown"}
        list(pool.map(lambda cell: prepare_task(processes, cell), own.values()))


def unfinished(cells: list[Cell]) -> list[Cell]:
    """Those neither finished here nor collected before."""
    return [c for c in cells if not CellFolder(c).is_done]


def run_all(processes: Processes, cells: list[Cell], num_workers: int) -> None:
    """All cells that are not finished, `num_workers` at a time; the first failure ends the study.

    The longest go first, so that the workers end together.
    """
    todo = sorted(unfinished(cells), key=lambda c: -c.num_steps)
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are finished", flush=True)
    with ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(run_cell, processes, cell) for cell in todo]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            processes.stop()
            pool.shutdown(cancel_futures=True)
            raise


def main(study: Study) -> None:
    cells = choose_cells(study)
    STUDY.mkdir(parents=True, exist_ok=True)
    with (STUDY / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another study is running in {STUDY}")
        processes = Processes()
        with Interrupts():  # SIGTERM ends the study as Ctrl-C does
            prepare(processes, unfinished(cells), study.num_workers)
            run_all(processes, sweeps_needed(cells), study.num_workers)
            run_all(processes, cells, study.num_workers)
    print(f"tier {study.tier} is finished: make study-report")


if __name__ == "__main__":
    main(tyro.cli(Study))
