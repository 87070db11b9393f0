"""Tier 6 as tables: what a step did to its own tokens, by sign and by rank."""

import results
from claims import with_band
from md_table import table

from fastrl.ledger.tables import SIGNS, mean_ranks, rank_cells, rank_header
from fastrl.statistics import bootstrap


def rank_table() -> str:
    """Tier 6: what one step did to its own tokens, by sign and rank; each token of all steps and seeds counts once."""
    rows = [["cell", "tokens", *rank_header()]]
    for name, cell in results.cells("tier6").items():
        lines = [line["update"] for row in cell.rows for line in row["ledger"]]
        for sign, word in SIGNS.items():
            steps = [update[sign]["by_rank"] for update in lines if "by_rank" in update.get(sign, {})]
            rows += [[name, word, *rank_cells(row)] for row in mean_ranks(steps)]
    return table(rows) if len(rows) > 1 else "not run"


def step_table() -> str:
    """Tier 6: all ranks of a step together, the mean over the measured steps of all seeds with its band over steps."""
    rows = [["cell", "tokens", "steps", "Δp of the mode, per thousand", "Δentropy, thousandths of a nat"]]
    for name, cell in results.cells("tier6").items():
        updates = [line["update"] for row in cell.rows for line in row["ledger"]]
        for sign, word in SIGNS.items():
            steps = [update[sign]["by_rank"] for update in updates if "by_rank" in update.get(sign, {})]
            if len(steps) > 1:
                changes = [[mean_of(step, key) for step in steps] for key in ("mode_change", "entropy_change")]
                rows.append([name, word, str(len(steps)), *(with_band(bootstrap(c), scale=1000) for c in changes)])
    return table(rows) if len(rows) > 1 else "not run"


def mean_of(classes: list[dict], key: str) -> float:
    """Of all tokens of a step, from the means of its classes of rank."""
    return sum(c["num"] * c[key] for c in classes) / sum(c["num"] for c in classes)
