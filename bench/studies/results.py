"""The committed results as arrays: cells by name, seeds stacked, problems checked to be the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class CellResult:
    """All seeds of one cell. rows: as collect.py wrote them, in the order of their seeds."""

    name: str
    rows: list[dict]

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
    def path_STP(self) -> np.ndarray:
        """Correct samples by seed, evaluation along the run (the initial policy first) and followed problem."""
        start = base()["followed"]["num_correct"]
        return np.array([[start, *row["followed"]["num_correct"]] for row in self.rows])

    @property
    def entropy_path_ST(self) -> np.ndarray:
        """Mean token entropy on the followed problems by seed and evaluation, the initial policy first."""
        start = base()["followed"]["mean_token_entropy"]
        return np.array([[start, *row["followed"]["entropy"]] for row in self.rows])

    @property
    def has_path(self) -> bool:
        return all("followed" in row for row in self.rows)

    def mean(self, *keys: str) -> float:
        """Mean over seeds of a nested number."""
        return float(np.mean([_nested(row, keys) for row in self.rows]))

    def last_ledger(self, *keys: str) -> float | None:
        """Mean over seeds of a nested number of the last ledger line; None where there is none."""
        values = [_nested(row["ledger"][-1], keys) for row in self.rows if row["ledger"]]
        values = [v for v in values if v is not None]
        return float(np.mean(values)) if values else None


def of_common_seeds(cells: Sequence[CellResult]) -> list[CellResult]:
    """The same cells with the seeds that all of them have, so that they pair; no cells where there is none."""
    common = set.intersection(*(set(c.seeds) for c in cells))
    if not common:
        return []
    return [CellResult(c.name, [row for row in c.rows if row["seed"] in common]) for c in cells]


def _nested(row: dict, keys: tuple[str, ...]) -> float | None:
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


def base_test(warmup: int = 0) -> dict:
    """The initial policy on the test problems: the demo's model, or the weaker one of so many supervised steps."""
    return base()[f"warm-{warmup}" if warmup else "test"]


def base_counts() -> np.ndarray:
    """(1,P) counts of the initial policy on the test problems."""
    return np.array([base_test()["num_correct"]])


def cells(tier: int) -> dict[str, CellResult]:
    """Cells of a tier by name (without the tier), seeds in order. ValueError for runs over different problems."""
    found: dict[str, list[dict]] = {}
    for row in sorted(read(f"tier{tier}") or [], key=lambda row: row["seed"]):
        if row["test"]["ids"] != base()["test"]["ids"]:
            raise ValueError(f"{row['name']}, seed {row['seed']}: tested on other problems than the base")
        found.setdefault(row["name"].removeprefix(f"tier{tier}."), []).append(row)
    return {name: CellResult(name, rows) for name, rows in found.items()}


def cell(name: str) -> CellResult | None:
    """One cell by its full name, such as tier1.nsr; None where it was not run."""
    tier, _, rest = name.partition(".")
    return cells(int(tier.removeprefix("tier"))).get(rest)
