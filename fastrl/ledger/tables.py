"""`fastrl ledger`: what a run's ledger says, as tables: where probability went, and by the rank of the token."""

from pathlib import Path

from fastrl.records.jsonl import read_jsonl
from fastrl.records.tables import markdown

SIGNS = {"negative": "penalised", "positive": "reinforced"}


def ledger_text(run: Path) -> str:
    """The tables of a run folder's ledger. FileNotFoundError where there is none, ValueError where it is empty."""
    path = run / "ledger.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no ledger {path}: a run keeps one with ledger.every above 0")
    rows = read_jsonl(path) if path.stat().st_size else []
    if not rows:
        raise ValueError(f"{path} has no line yet: the first is written before the first update")
    last = rows[-1]
    parts = [f"probability per prompt, step {last['step']} against the initial policy", moved_table(last)]
    for sign, name in SIGNS.items():
        since = last["tokens"][sign].get("by_rank", [])
        parts += [f"{name} tokens of the initial policy on {len(last['prompts']['correct'])} other prompts, since then"]
        parts += [rank_table(since)]
        steps = [row["update"][sign]["by_rank"] for row in rows if "by_rank" in row["update"].get(sign, {})]
        if steps:
            parts += [
                f"{name} tokens of the step itself, before and after it: {len(steps)} steps",
                rank_table(mean_ranks(steps)),
            ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def moved_table(row: dict) -> str:
    """What left the penalised completions and where it arrived."""
    return markdown([[k.replace("_", " ") for k in row["moved"]], [f"{v:+.4f}" for v in row["moved"].values()]])


def rank_header() -> list[str]:
    """`of all`: the class's part of what a token lost on average."""
    return ["rank before", "number", "share", "p before", "lost", "of all", "Δp of the mode", "Δentropy, nats"]


def rank_cells(row: dict) -> list[str]:
    """One class of `ledger.ranks.by_rank`."""
    first, last = row["from"], row["to"]
    name = str(first) if first == last else f"{first}–{last}" if last else f"{first} and beyond"
    changes = (row["lost"], row["share"] * row["lost"], row["mode_change"], row["entropy_change"])
    shown = [name, str(row["num"]), f"{100 * row['share']:.0f} %", f"{row['p']:.3f}"]
    return [*shown, *(f"{value:+.4f}" for value in changes)]


def rank_table(rows: list[dict]) -> str:
    return markdown([rank_header(), *map(rank_cells, rows)])


def mean_ranks(steps: list[list[dict]]) -> list[dict]:
    """`by_rank` of several measurements together, each token counting once."""
    rows = [row for step in steps for row in step]
    total, means = sum(row["num"] for row in rows), []
    for first, last in sorted({(row["from"], row["to"]) for row in rows}, key=lambda ends: ends[0]):
        mine = [row for row in rows if row["from"] == first]
        num = sum(row["num"] for row in mine)
        names = ("p", "lost", "mode_change", "entropy_change")
        values = {name: sum(row["num"] * row[name] for row in mine) / num for name in names}
        means.append({"from": first, "to": last, "num": num, "share": num / total} | values)
    return means
