"""Tables of bench/studies/results/turns.json: python bench/studies/turns/turns_report.py

Bands are 95 % over games and seeds, crossed (`bands`); differences are paired by game and seed. Correlations are
Pearson's, over the questions of all games in a resample.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bands import Resamples, interval, mean_band

from fastrl.statistics import Interval

RESULTS = Path(__file__).resolve().parent.parent / "results" / "turns.json"
PAIRS = (  # a − b
    ("grpo", "base"),
    ("grpo+belief", "grpo"),
    ("nsr", "base"),
    ("nsr+belief", "nsr"),
    ("delta-belief", "base"),
    ("delta-belief", "grpo"),
    ("tagged.grpo", "tagged.base"),
    ("rlvmr", "tagged.grpo"),
    ("rlvmr.tags-alone", "tagged.grpo"),
)


def wins(rows: list[dict]) -> np.ndarray:
    """(S,P) share of each game's samples that won."""
    return np.array([row["num_correct"] for row in rows]) / rows[0]["num_samples"]


def sums(row: dict, number: int | None) -> np.ndarray:
    """(P,6): of each game 1, x, y, x², y², xy summed over its questions (or its number-th); x exact, y the model's."""
    sums_P6 = np.zeros((len(row["num_correct"]), 6))
    for game, question, x, y in row["gains"]:
        if number in (None, question):
            sums_P6[game] += (1, x, y, x * x, y * y, x * y)
    return sums_P6


def correlation(sums_R6: np.ndarray) -> np.ndarray:
    """(R,) Pearson's r. NaN where nothing varies."""
    n, x, y, xx, yy, xy = sums_R6.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy / n - x * y / n**2) / np.sqrt((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2))


def correlation_band(rows: list[dict], number: int | None = None) -> Interval | None:
    """None where some resample has nothing that varies."""
    sums_SP6 = np.stack([sums(row, number) for row in rows])
    found_R = correlation(Resamples.draw(*sums_SP6.shape[:2]).means(sums_SP6))
    return interval(found_R) if np.isfinite(found_R).all() else None


def slope(rows: list[dict]) -> float:
    """Of the regression of the model's gains on the exact ones: 1 for one who knows."""
    n, x, y, xx, _, xy = sum(sums(row, None).sum(axis=0) for row in rows)
    return float((xy / n - x * y / n**2) / (xx / n - (x / n) ** 2))


def shown(value: Interval | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "–"
    return f"{scale * value.mean:.{digits}f} [{scale * value.low:.{digits}f}, {scale * value.high:.{digits}f}]"


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def manners(cells: dict[str, list[dict]]) -> str:
    """How each cell plays, and what it believes."""
    head = ["cell", "seeds", "games won, %", "questions", "bits a question", "told nothing, %", "worth of turns"]
    lines = [[*head, "r(ΔBelief, information)", *(f"question {k}" for k in (1, 2, 3, 4)), "slope"]]
    for name, rows in cells.items():
        asked, bits, wasted = (
            np.mean([row[key] for row in rows]) for key in ("questions", "bits_per_question", "wasted_share")
        )
        worths = [row["turn_worth"] for row in rows if row["turn_worth"] is not None]
        said = [name, str(len(rows)), shown(mean_band(wins(rows)), 100, 1), f"{asked:.2f}", f"{bits:.2f}"]
        said += [f"{100 * wasted:.1f}", f"{np.mean(worths):.2f}" if worths else "–"]
        said += [shown(correlation_band(rows, number)) for number in (None, 0, 1, 2, 3)]
        lines.append([*said, f"{slope(rows):.2f}"])
    return table(lines)


def differences(cells: dict[str, list[dict]]) -> str:
    """a − b of the seeds that both have."""
    lines = [["a − b", "games won, points", "r(ΔBelief, information)"]]
    for a, b in PAIRS:
        common = {row["seed"] for row in cells.get(a, [])} & {row["seed"] for row in cells.get(b, [])}
        if not common:
            continue
        first, second = ([row for row in cells[name] if row["seed"] in common] for name in (a, b))
        both = np.stack([np.hstack([sums(x, None), sums(y, None)]) for x, y in zip(first, second, strict=True)])
        means = Resamples.draw(*both.shape[:2]).means(both)
        change = interval(correlation(means[:, :6]) - correlation(means[:, 6:]))
        lines.append([f"{a} − {b}", shown(mean_band(wins(first) - wins(second)), 100, 1), shown(change)])
    return table(lines)


def levels(cells: dict[str, list[dict]]) -> str:
    """Mean log-prob of the thing, the model's less the posterior's, by the number of answers; no bands."""
    lines = [["nats behind k answers", *map(str, range(5))]]
    for name, rows in cells.items():
        found = np.array([level for row in rows for level in row["levels"]])
        gaps = [found[found[:, 1] == k][:, 3] - found[found[:, 1] == k][:, 2] for k in range(5)]
        lines.append([name, *(f"{gap.mean():+.2f}" if len(gap) else "–" for gap in gaps)])
    return table(lines)


def main() -> None:
    cells: dict[str, list[dict]] = {}
    for row in json.loads(RESULTS.read_text()):
        cells.setdefault(row["name"], []).append(row)
    print(manners(cells), "\n")
    print(differences(cells), "\n")
    print(levels(cells))


if __name__ == "__main__":
    main()
