"""From runs/study to bench/studies/results: what the report needs of every finished cell, small enough to commit."""

import json
from pathlib import Path

import tyro
from cells import FOLLOW_EVERY, TIERS, Cell, cells_of, selection_cells
from folders import BASE, BASE_FOLLOWED, STUDY, CellFolder, final_pass_at_1, finished_cells
from results import RESULTS, read

from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.evaluation.results import named_measures
from fastrl.records.jsonl import as_json, read_jsonl

SCALARS = ("mean_token_entropy", "distinct_correct_answers", "mean_length", "truncated_share")
METRICS = ("clip/positive", "clip/negative", "update/num_updates", "update/kept_share", "entropy/mean", "grad_norm")
METRICS += ("critic/explained_variance", "critic/mean_value", "critic/mean_return")
METRICS += ("refine/own_correct_share", "refine/wrong_corrected_share", "refine/correct_kept_share")
METRICS += ("refine/all_wrong_groups", "refine/rescued_share", "refine/logprob")
METRICS += ("reward/mean", "task/label_accuracy", "task/accuracy", "task/truthfulness")


def evaluation_row(path: Path) -> dict:
    """Counts by problem in the order of the file, and the scalars."""
    evaluation = json.loads(path.read_text())
    row = {"num_samples": evaluation["num_samples"], "num_correct": [p["num_correct"] for p in evaluation["problems"]]}
    if known := named_measures(evaluation):
        row["measures"] = known
    row["maj_at_k"] = {k: value["mean"] for k, value in evaluation["maj_at_k"].items()}
    return row | {"ids": [p["id"] for p in evaluation["problems"]]} | {name: evaluation[name] for name in SCALARS}


def followed_row(folder: CellFolder) -> dict:
    """Counts by step and problem along the run."""
    steps = range(FOLLOW_EVERY, folder.cell.num_steps + 1, FOLLOW_EVERY)
    rows = [evaluation_row(folder.validation(step)) for step in steps]
    return {
        "steps": list(steps),
        "num_samples": rows[0]["num_samples"],
        "num_correct": [row["num_correct"] for row in rows],
        "entropy": [row["mean_token_entropy"] for row in rows],
    }


def ledger_rows(folder: CellFolder) -> list[dict]:
    """The run's ledger without what is long: prompts one by one, named tokens."""
    path = folder.run / "ledger.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    for row in rows:
        del row["prompts"]
        for sign in row["tokens"].values():
            del sign["largest"]
    return rows


def metric_means(rows: list[dict]) -> dict[str, float]:
    """Means over some steps of a run, missing values left out."""
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in METRICS}
    return {name: sum(v) / len(v) for name, v in values.items() if v}


def metrics_row(folder: CellFolder) -> dict:
    """Means over the run, and over the first and the last FOLLOW_EVERY steps of it."""
    rows = [row for row in read_jsonl(folder.run / "metrics.jsonl") if "reward/mean" in row]
    windows = {"first": metric_means(rows[:FOLLOW_EVERY]), "last": metric_means(rows[-FOLLOW_EVERY:])}
    return {"metrics": metric_means(rows), "windows": windows}


def cell_row(cell: Cell) -> dict:
    """Everything that is kept of a finished cell."""
    folder = CellFolder(cell)
    config = load_config(TrainConfig, folder.run / "config.toml")
    row = {"name": cell.name, "seed": cell.seed, "lr": config.optimizer.lr, "warmup": cell.warmup, "start": cell.start}
    row |= {"num_steps": cell.num_steps, "test": evaluation_row(folder.test)} | metrics_row(folder)
    if cell.is_followed:
        row["followed"] = followed_row(folder)
    return row | {"ledger": ledger_rows(folder)}


def base_rows() -> dict[str, dict]:
    """The initial models, those collected before included: the demo's, weaker ones, those of tasks.

    A task's followed problems: test.TASK-base/validation.json is `followed.TASK`.
    """
    paths = {"test": BASE, "followed": BASE_FOLLOWED}
    paths |= {p.parent.name.removesuffix("-base"): p for p in sorted(STUDY.glob("*-base/test.json"))}
    followed = sorted(STUDY.glob("test.*-base/validation.json"))
    paths |= {p.parent.name.removesuffix("-base").replace("test", "followed", 1): p for p in followed}
    return (read("base") or {}) | {name: evaluation_row(path) for name, path in paths.items() if path.exists()}


def sweep_rows() -> list[dict]:
    """pass@1 by learning rate of every finished sweep."""
    sweeps = {c.selection for tier in TIERS for c in cells_of(tier) if c.selection}
    cells = [c for sweep in sorted(sweeps) for c in selection_cells(sweep) if CellFolder(c).is_done]
    return [
        {"name": c.name, "lr": c.settings["optimizer.lr"], "pass_at_1": final_pass_at_1(c), "num_steps": c.num_steps}
        for c in cells
    ]


def rounded(value: object) -> object:
    """Floats to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """Cells collected before and cells finished here, which win; by name and seed."""
    rows = {(row["name"], row["seed"]): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def write(name: str, rows: object) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rounded(as_json(rows)), separators=(",", ":")) + "\n")


def main() -> None:
    """Write results/*.json; what was collected before, perhaps on another machine, stays."""
    if bases := base_rows():
        write("base", bases)
    if sweeps := sweep_rows():
        write("sweeps", sweeps)
    for tier in TIERS[1:]:
        rows = merged(read(f"tier{tier}") or [], [cell_row(c) for c in finished_cells(tier)])
        if rows:
            write(f"tier{tier}", rows)
        print(f"tier {tier}: {len(rows)} cells are finished; it has {len(cells_of(tier))}")


if __name__ == "__main__":
    tyro.cli(main)
