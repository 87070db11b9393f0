"""Where a cell's files lie and how far it has come.

runs/study/CELL/{train.toml, run/, test.json, log.txt}; runs/study/warm-N/ holds the model of N supervised steps,
start-NAME/ the one that configs/NAME-warmup.toml makes, START-base/test.json what a model scored before training.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cells import ROOT, STARTS, Cell, cells_of, selection_cells
from results import read

STUDY = ROOT / "runs" / "study"
BASE = STUDY / "base" / "test.json"
BASE_FOLLOWED = STUDY / "base" / "validation.json"


@dataclass(frozen=True)
class CellFolder:
    """The files of one cell."""

    cell: Cell

    @property
    def path(self) -> Path:
        return STUDY / self.cell.id

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def test(self) -> Path:
        return self.path / "test.json"

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / f"step-{self.cell.num_steps:06d}"

    def validation(self, step: int) -> Path:
        return self.run / "eval" / f"validation-{step:06d}.json"

    @property
    def is_trained(self) -> bool:
        """The last checkpoint and, where the run is followed, its last validation are there."""
        is_validated = not self.cell.is_followed or self.validation(self.cell.num_steps).exists()
        return (self.checkpoint / "config.json").exists() and is_validated

    @property
    def is_finished(self) -> bool:
        return self.is_trained and (not self.cell.test_samples or self.test.exists())

    @property
    def is_done(self) -> bool:
        """Finished here, or collected before, perhaps on another machine."""
        return self.is_finished or recorded(self.cell) is not None


def recorded(cell: Cell) -> dict | None:
    """What was collected of a cell; None where nothing was."""
    group = cell.name.partition(".")[0]
    rows = read("sweeps" if group == "select" else group) or []
    return next((r for r in rows if (r["name"], r.get("seed", cell.seed)) == (cell.name, cell.seed)), None)


def finished_cells(tier: int) -> list[Cell]:
    """The finished cells of a tier by name and seed, seeds that were added later among them."""
    named = {c.name: c for c in cells_of(tier)}
    seeds = {name: sorted(int(p.name.rpartition(".seed")[2]) for p in STUDY.glob(f"{name}.seed*")) for name in named}
    cells = [replace(named[name], seed=seed) for name, found in seeds.items() for seed in found]
    return [c for c in cells if CellFolder(c).is_finished]


def warm_model(num_steps: int) -> Path:
    """The initial model: the demo's own for 0."""
    return STUDY / f"warm-{num_steps}" if num_steps else ROOT / "models" / "countdown"


def initial_model(cell: Cell) -> Path:
    """The model that a cell starts from: one that can write what its task asks for, or `warm_model`."""
    return STUDY / f"start-{STARTS[cell.task]}" if cell.task in STARTS else warm_model(cell.warmup)


def final_pass_at_1(cell: Cell) -> float:
    """pass@1 on the validation problems after the last step."""
    path = CellFolder(cell).validation(cell.num_steps)
    if not path.exists() and (row := recorded(cell)):
        return row["pass_at_1"]
    return json.loads(path.read_text())["pass_at_k"]["1"]["mean"]


def chosen_lr(sweep: str) -> float:
    """The rule, the same for every objective: the rate with the highest validation pass@1 at the end of the budget."""
    best = max(selection_cells(sweep), key=final_pass_at_1)
    return best.settings["optimizer.lr"]
