"""The committed results as arrays: cells by name, seeds stacked, problems checked to be the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class CellResult:
    """All seeds of one cell.

    rows: as collect.py or real/pretrained.py wrote them, in the order of their seeds. start: the evaluation of the
    model that all of them began from, on the same test problems.
    """

    name: str
    rows: list[dict]
    start: dict

    @property
    def seeds(self) -> list[int]:
        return [row["seed"] for row in self.rows]

    @property
    def num_samples(self) -> int:
        return self.rows[0]["test"]["num_samples"]

    @property
    def counts_SP(self) -> np.ndarray:
        """Correct samples by seed and test problem."""
        return np.array([row["test"]["num_correct"] for row in self.rows])

    @property
    def followed_start(self) -> dict:
        _, dot, task = self.rows[0].get("start", "").partition(".")
        return base()[f"followed{dot}{task}"]

    @property
    def path_STP(self) -> np.ndarray:
        """Correct samples by seed, evaluation along the run and followed problem; the model that the cell's task starts
        from comes first (of weaker bases, whose followed problems nobody evaluated, the demo's)."""
        start = self.followed_start["num_correct"]
        return np.array([[start, *row["followed"]["num_correct"]] for row in self.rows])

    @property
    def entropy_path_ST(self) -> np.ndarray:
        """Mean token entropy on the followed problems by seed and evaluation, the initial policy first."""
        start = self.followed_start["mean_token_entropy"]
        return np.array([[start, *row["followed"]["entropy"]] for row in self.rows])

    @property
    def has_path(self) -> bool:
        return all("followed" in row for row in self.rows)

    def mean(self, *keys: str) -> float:
        """Mean over seeds of a nested number."""
        return float(np.mean([nested(row, keys) for row in self.rows]))

    def last_ledger(self, *keys: str) -> float | None:
        """Mean over seeds of a nested number of the last ledger line; None where there is none."""
        values = [nested(row["ledger"][-1], keys) for row in self.rows if row["ledger"]]
        values = [v for v in values if v is not None]
        return float(np.mean(values)) if values else None


def of_common_seeds(cells: Sequence[CellResult]) -> list[CellResult]:
    """The same cells with the seeds that all of them have, so that they pair; no cells where there is none."""
    common = set.intersection(*(set(c.seeds) for c in cells))
    if not common:
        return []
    return [replace(c, rows=[row for row in c.rows if row["seed"] in common]) for c in cells]


def nested(row: dict, keys: tuple[str, ...]) -> float | None:
    """row[key][key]…; None where that is not there."""
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


@cache
def read(name: str) -> dict | list | None:
    """results/NAME.json, None where it is not there."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def base() -> dict:
    """The initial policy's evaluations. FileNotFoundError before anything was collected."""
    found = read("base")
    if found is None:
        raise FileNotFoundError(f"no {RESULTS / 'base.json'}: run `make study TIER=1` and collect.py first")
    return found


def start_of(warmup: int) -> str:
    """The name in base.json of the model that a row collected before these were named started from."""
    return f"warm-{warmup}" if warmup else "test"


def cells(group: str) -> dict[str, CellResult]:
    """Cells of a tier (`tier1`) or of the pretrained model (`real_cpu`) by name, seeds in order; none before they ran.

    ValueError for runs over other problems than the model they began from.
    """
    found = read(group) or []
    is_real = isinstance(found, dict)
    by_name: dict[str, CellResult] = {}
    for row in sorted(found["rows"] if is_real else found, key=lambda row: row["seed"]):
        start = found["base"] if is_real else base()[row.get("start") or start_of(row["warmup"])]
        if row["test"]["ids"] != start["ids"]:
            raise ValueError(f"{row['name']}, seed {row['seed']}: tested on other problems than the base")
        name = row["name"].removeprefix(f"{group}.")
        by_name.setdefault(name, CellResult(name, [], start)).rows.append(row)
    return by_name


def cell(name: str) -> CellResult | None:
    """One cell by its full name, such as tier1.nsr or real_cpu.nsr; None where it was not run."""
    group, _, rest = name.partition(".")
    return cells(group).get(rest)
