"""Fill README.md with what results/*.json say, and draw the figures. collect.py makes results from runs/.

python bench/studies/report.py        (make study-report)
"""

import re
from pathlib import Path

import numpy as np
import results
import tyro
from bands import band, difference_at_equal_pass_at_1, verdict
from cells import TIERS, cells_of
from claims import CLAIMS, points, with_band
from critic_claims import CRITIC_CLAIMS
from family_claims import FAMILY
from figures import draw_bases, draw_curves, draw_overview, draw_paths
from md_table import table
from measures import against_base, between, entropy, pass_at
from rank_tables import rank_table, step_table
from results import CellResult
from reward_claims import REWARDED
from told_claims import TOLD_CLAIMS

README = Path(__file__).resolve().parent / "README.md"
KS = (1, 4, 16, 64, 256)
LEDGER = {
    "left penalised": ("moved", "left_penalised"),
    "to correct": ("moved", "to_correct"),
    "to other wrong": ("moved", "to_other_wrong"),
    "to the rest": ("moved", "to_rest"),
    "Δlogp correct": ("logprob", "correct", "change"),
    "weighted": ("logprob", "correct", "weighted_change"),
    "Δlogp penalised": ("logprob", "penalised", "change"),
    "follows prior": ("tokens", "negative", "movement", "follows_prior"),
    "cosine of signs": ("gradient", "cosine"),
    "unlisted mass": ("mass", "rest"),
}
REFINED = {
    "all-wrong groups": "all_wrong_groups",
    "of these rescued": "rescued_share",
    "wrong ones corrected": "wrong_corrected_share",
    "correct ones kept": "correct_kept_share",
    "log-prob of a token behind its own prompt": "logprob",
}
REWARDS = {  # columns of tier 5's tables, where they stand in an evaluation
    "truthrl": {
        name: ("measures", name)
        for name in ("truthfulness", "hallucination", "accuracy", "abstained_solvable", "abstained_unsolvable")
    },
    "rlcr": {name: ("measures", f"calibration/{name}") for name in ("ece", "brier", "auroc", "mean_confidence")},
    "ttrl": {
        "maj@64": ("maj_at_k", "64"),
        "label right, first steps": ("windows", "first", "task/label_accuracy"),
        "last steps": ("windows", "last", "task/label_accuracy"),
    },
    "spurious": {},
}
BELIEF = {  # columns of the table of belief/belief.py
    "claims": ("claims",),
    "mean belief": ("mean_belief",),
    "belief where it claims": ("mean_belief_claimed",),
    "where it does not": ("mean_belief_not_claimed",),
    "Bullshit Index": ("index", "mean"),
    "drawn from belief": ("index_if_drawn",),
}


def percent(value) -> str:
    return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def progress() -> str:
    """How much of the study the tables rest on, and what that means for the verdicts."""
    cells = {tier: results.cells(f"tier{tier}") for tier in TIERS[1:]}
    done = {tier: sum(len(c.seeds) for c in found.values()) for tier, found in cells.items()}
    parts = ", ".join(f"tier {tier}: {number} of {len(cells_of(tier))} runs" for tier, number in done.items())
    single = [name for found in cells.values() for name, cell in found.items() if len(cell.seeds) == 1]
    if not single:
        return f"**So far** {parts}."
    return (
        f"**So far** {parts}. Where a cell has one seed ({', '.join(single)}) bands are over problems alone; seeds move"
        " such runs by several points, so a verdict that rests on one is a first impression."
    )


def curve_table(tier: int) -> str:
    """pass@k with bands over problems and seeds, entropy and distinct solutions, of every cell of a tier."""
    found = results.cells(f"tier{tier}")
    if not found:
        return "not run"
    ks = _ks(found)
    rows = [["cell", "seeds", "lr", *(f"@{k}" for k in ks), "entropy", "distinct correct", "clipped + / −"]]
    starts = {cell.rows[0]["warmup"]: cell.start for cell in found.values()}
    for warmup, start in sorted(starts.items()):
        name = f"base, {warmup} warm-up steps" if warmup else "base"
        rows.append([name, "", "", *_evaluated([start], ks, "distinct_correct_answers"), ""])
    for name, cell in found.items():
        tests = [row["test"] for row in cell.rows]
        clipped = " / ".join(f"{100 * cell.mean('metrics', f'clip/{sign}'):.1f} %" for sign in ("positive", "negative"))
        row = [name, str(len(tests)), f"{cell.rows[0]['lr']:g}", *_evaluated(tests, ks, "distinct_correct_answers")]
        rows.append([*row, clipped])
    return table(rows)


def pretrained_table(scale: str) -> str:
    """The pretrained model before and after each objective, and NSR's differences."""
    found = results.cells(f"real_{scale}")
    if not found:
        return "not run"
    ks = _ks(found)
    rows = [["", "seeds", *(f"@{k}" for k in ks), "entropy", "distinct answers"]]
    rows.append(["base", "", *_evaluated([next(iter(found.values())).start], ks, "distinct_answers")])
    for name, cell in found.items():
        tests = [row["test"] for row in cell.rows]
        rows.append([name, str(len(tests)), *_evaluated(tests, ks, "distinct_answers")])
    nsr, psr = f"real_{scale}.nsr", f"real_{scale}.psr"
    for name, difference in (
        ("nsr − psr", lambda quantity: between(nsr, psr, quantity)()),
        ("nsr − base", lambda quantity: against_base(nsr, quantity)()),
    ):
        rows.append([name, "", *(points(difference(pass_at(k))) for k in ks), "", ""])
    return table(rows)


def settings_table() -> str:
    """Tier 2 setting by setting: NSR less PSR."""
    rows = [["NSR − PSR", "seeds", "pass@1", "pass@64", "entropy, nats"]]
    for name, cell in results.cells("tier2").items():
        objective, _, setting = name.partition(".")
        pair = f"tier2.nsr.{setting}", f"tier2.psr.{setting}"
        if objective != "nsr" or results.cell(pair[1]) is None:
            continue
        values = [between(*pair, quantity)() for quantity in (pass_at(1), pass_at(64), entropy)]
        shown = [points(values[0]), points(values[1]), with_band(values[2]) if values[2] else "needs two seeds"]
        rows.append([setting, str(len(cell.seeds)), *shown])
    return table(rows) if len(rows) > 1 else "not run"


def _ks(found: dict[str, CellResult]) -> list[int]:
    return [k for k in KS if k <= max(c.num_samples for c in found.values())]


def _evaluated(tests: list[dict], ks: list[int], distinct: str = "distinct_correct_answers") -> list[str]:
    """pass@k with bands, entropy and the number of distinct answers, of evaluations that differ in their seed alone."""
    counts_SP, num_samples = np.array([t["num_correct"] for t in tests]), tests[0]["num_samples"]
    bands = [percent(band(counts_SP, num_samples, k)) if k <= num_samples else "–" for k in ks]
    nats, number = (np.mean([t[name] for t in tests]) for name in ("mean_token_entropy", distinct))
    return [*bands, f"{nats:.2f}", f"{number:.1f}"]


def equal_table(tier: int, reference: str) -> str:
    """Every cell against one at k = 64, at equal steps (test problems) and at equal pass@1 (followed problems)."""
    found, told = results.cells(f"tier{tier}"), reference.upper()
    if reference not in found or "followed" not in results.base():
        return "not run"
    equal = (f"equal pass@1, {p:.0%} of the way" for p in (0.5, 0.75, 0.95))
    rows = [[f"objective − {told}, pass@64", "equal steps", *equal]]
    for name, cell in found.items():
        value = between(f"tier{tier}.{name}", f"tier{tier}.{reference}", pass_at(64))() if name != reference else None
        if value is None:
            continue
        row = [name, f"{points(value)} {verdict(value)}"]
        for progress in (0.5, 0.75, 0.95):
            first, second = results.of_common_seeds([cell, found[reference]])
            num_samples = first.rows[0]["followed"]["num_samples"]
            level, value = difference_at_equal_pass_at_1(first.path_STP, second.path_STP, num_samples, 64, progress)
            row.append(f"at {100 * level:.1f}: {points(value)} {verdict(value)}")
        rows.append(row)
    return table(rows)


def ledger_table(*groups: str) -> str:
    """The last line of every cell's ledger, means over seeds."""
    cells = {name: c for group in groups for name, c in results.cells(group).items()}
    found = {name: c for name, c in cells.items() if c.last_ledger("step") is not None}
    if not found:
        return "not run"
    rows = [["cell", *LEDGER]]
    for name, cell in found.items():
        values = [cell.last_ledger(*keys) for keys in LEDGER.values()]
        rows.append([name, *("–" if v is None else f"{v:+.3f}" for v in values)])
    return table(rows)


def refine_table() -> str:
    """Tier 9: what second tries came to in training, over the first and the last steps; means over seeds."""
    key = REFINED["of these rescued"]
    found = {name: c for name, c in results.cells("tier9").items() if f"refine/{key}" in c.rows[0]["windows"]["last"]}
    if not found:
        return "not run"
    rows = [["cell", *REFINED]]
    for name, cell in found.items():
        values = ([cell.mean("windows", w, f"refine/{key}") for w in ("first", "last")] for key in REFINED.values())
        rows.append([name, *(f"{first:.2f} → {last:.2f}" for first, last in values)])
    return table(rows)


def rewards_table(part: str) -> str:
    """A part of tier 5: the model before training, and every cell; means over seeds, their range behind them."""
    found = _named(results.cells("tier5"), part)
    if not found:
        return "not run"
    ks, columns = _ks(found), REWARDS[part]
    rows = [["cell", "seeds", *(f"@{k}" for k in ks), *columns]]
    starts = {cell.rows[0]["start"]: cell.start for cell in found.values()}
    rows += [
        [f"before: {name}", "", *_evaluated([e], ks)[: len(ks)], *_measured([e], columns)] for name, e in starts.items()
    ]
    for name, cell in found.items():
        tests = [row["test"] | {"windows": row["windows"]} for row in cell.rows]
        rows.append([name, str(len(tests)), *_evaluated(tests, ks)[: len(ks)], *_measured(tests, columns)])
    return table(rows)


def _measured(tests: list[dict], columns: dict[str, tuple[str, ...]]) -> list[str]:
    """Nested numbers of evaluations that differ in their seed alone, in percent points; – where one lacks it."""
    shown = []
    for keys in columns.values():
        values = [results.nested(test, keys) for test in tests]
        if None in values:
            shown.append("–")
            continue
        spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
        shown.append(f"{100 * np.mean(values):.1f}{spread}")
    return shown


def belief_table() -> str:
    """belief/belief.py: the model before, and every arm at its last step; means over seeds, their range behind them."""
    found = results.read("belief")
    if found is None:
        return "not run"
    ends: dict[str, list[dict]] = {"before": [found["base"]["belief"]]}
    for run in found["runs"]:
        ends.setdefault(run["arm"], []).append(run["path"][-1]["belief"])
    rows = [["reward and objective", "seeds", *BELIEF]]
    for name, measured in ends.items():
        shares = [one | {"claims": one["num_claims"] / one["num_samples"]} for one in measured]
        rows.append([name, "" if name == "before" else str(len(shares)), *_measured(shares, BELIEF)])
    return table(rows)


def sweep_table() -> str:
    """pass@1 by learning rate: what the rule chose from."""
    rows = results.read("sweeps")
    if not rows:
        return "not run"
    shown = [[r["name"].removeprefix("select."), f"{100 * r['pass_at_1']:.1f}"] for r in rows]
    return table([["sweep and rate", "pass@1 at the end"], *shown])


def sections() -> dict[str, str]:
    """What stands between the markers of README.md, by name."""
    claims = [
        ["who", "says", "predicts", "measured", "verdict"],
        *(claim.row() for claim in [*CLAIMS, *FAMILY, *REWARDED, *CRITIC_CLAIMS, *TOLD_CLAIMS]),
    ]
    return {
        "pretrained": pretrained_table("cpu"),
        "claims": f"{progress()}\n\n{table(claims)}",
        "sweeps": sweep_table(),
        "tier1": curve_table(1),
        "equal": equal_table(1, "psr"),
        "ledger": ledger_table("tier1", "tier3"),
        "ranks": rank_table(),
        "steps": step_table(),
        "belief": belief_table(),
        "tier2 differences": settings_table(),
        "tier2": curve_table(2),
        "tier3": curve_table(3),
        "tier4": curve_table(4),
        **{f"tier5 {part}": rewards_table(part) for part in REWARDS},
        "tier8": curve_table(8),
        "tier9": curve_table(9),
        "tier9 second tries": refine_table(),
        "tier9 equal": equal_table(9, "nsr"),
        "tier9 ledger": ledger_table("tier9"),
    }


def _named(cells: dict[str, CellResult], part: str) -> dict[str, CellResult]:
    """The cells PART.objective, by objective."""
    return {name.removeprefix(f"{part}."): cell for name, cell in cells.items() if name.startswith(f"{part}.")}


def fill(text: str, contents: dict[str, str]) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`. ValueError for a marker that is missing."""
    for name, content in contents.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{README} has no markers <!-- {name} --> … <!-- /{name} -->")
        text = pattern.sub(lambda match, new=content: f"{match[1]}\n{new}\n\n{match[2]}", text)
    return text


def main() -> None:
    """Rewrite README.md and the figures."""
    README.write_text(fill(README.read_text(), sections()))
    if found := results.cells("tier1"):
        draw_curves(found, README.with_name("pass_at_k.png"))
        draw_paths(found, README.with_name("equal_pass_at_1.png"))
        draw_overview(found, README.with_name("overview.png"))
    if found := results.cells("tier3"):
        parts = {part: _named(found, part) for part in ("base200", "base600", "long")}
        strongest = {name: c for name, c in results.cells("tier1").items() if name in parts["long"]}
        by_steps = {200: parts["base200"], 600: parts["base600"], 1600: strongest}
        if all([*parts.values(), strongest]):
            draw_bases(by_steps, parts["long"], README.with_name("bases.png"))
    if found := results.cells("real_cpu"):
        of = "One-digit arithmetic, a pretrained model of 270 M parameters"
        draw_curves(found, README.parent / "real" / "pass_at_k_cpu.png", of)
    print(README)


if __name__ == "__main__":
    tyro.cli(main)
