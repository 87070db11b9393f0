"""The page: every row with its origin, its bars and whether they are met, in Markdown.

A row on a card is the last line about it. A row without a line is not measured, and so are its bars.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel_bars import bar_of, times_floor, verdict_of
from machine import Row as Timing
from rows import ROWS, Bar, Row

HEAD = """# Speedrun

    bench/speedrun/run              # what is missing, on one GPU; --call 1 to 4 for a part, --only NAME for one row
    bench/speedrun/run --dry-run    # tiny shapes on a CPU, the same code

Random weights at true shapes. `train`: updates of 64 × (256 + 768) tokens, `16k`: of 8 × (256 + 16,128), one sequence
at a time; tokens/s counts prompts and completions. `iteration`: 32 prompts × 8 (7b: 16 × 8) of 256 + 768 tokens, in a
`tail` at most so long, with vLLM in the process; tokens/s counts the completions of a whole iteration. Medians; a step
is an update, or an iteration.

MFU is (6 · B · T + 6 · L · D · S + 6 · H · V · C) / seconds / peak (`fastrl/plan/flops.py`): B parameters of the
blocks, T tokens (a prompt once for all of its completions), L layers, D = heads · head size, S = the sum of length² of
sequences (prompts shared as in T), H hidden size, V vocabulary, C completion tokens; the peak is the card's, dense
bfloat16 (H100: 989 · 10¹²). It counts what has to be computed, so neither recomputed blocks nor prompts' logits. Of an
iteration it is the update's, for what carries gradient. Peaks are PyTorch's allocations in GiB, beside vLLM its
weights and cache included. Bars are for an H100 with 80 GB; what failed missed them.
"""
KERNELS = """Kernels: ms of the device and of the wall (launches included), and times the floor of the same run. For
half idle rows it is the same loss with none idle."""
CARD_OF_BARS = "H100"
SHOWN = {  # quantity: its name, and a value of it
    "tokens_per_s": ("tokens/s", lambda value: f"{value:,.0f} tokens/s"),
    "mfu": ("MFU", lambda value: f"{100 * value:.3g} % MFU"),
    "peak_gib": ("peak", lambda value: f"peak {value:.1f} GiB"),
}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def newest(lines: Sequence[dict]) -> list[dict]:
    """The last line of each row on each card."""
    return list({(line["row"], line["card"]): line for line in lines}.values())


def limit_of(bar: Bar, card: str, lines: Sequence[dict]) -> float | None:
    """In the quantity's unit; None while no peer is measured on this card."""
    if not bar.peer:
        return bar.limit
    peers = [x for x in lines if x["card"] == card and x["row"].startswith(bar.peer) and x.get("tokens_per_s")]
    value = max(peers, key=lambda line: line["tokens_per_s"]).get(bar.quantity) if peers else None
    return None if value is None else bar.limit * value


def judged(line: dict, word: str) -> str:
    """The verdict, or why there is none: bars are for one card, and not for toy sizes."""
    if line.get("is_dry"):
        return "toy sizes"
    return word if CARD_OF_BARS in line["card"] else f"not judged, a bar for {CARD_OF_BARS}"


def verdict(bar: Bar, line: dict, lines: Sequence[dict]) -> str:
    """met, missed (as whatever failed) or not measured."""
    limit, value = limit_of(bar, line["card"], lines), line.get(bar.quantity)
    if "failed" in line:
        return judged(line, "missed")
    if limit is None or value is None:
        return "not measured"
    return judged(line, "met" if (value <= limit if bar.is_most else value >= limit) else "missed")


def bar_text(bar: Bar, card: str = "", lines: Sequence[dict] = ()) -> str:
    sign, limit, (quantity, show) = "≤" if bar.is_most else "≥", limit_of(bar, card, lines), SHOWN[bar.quantity]
    if not bar.peer:
        return f"{sign} {show(limit)}"
    return f"{sign} {bar.limit:g} × {bar.peer}'s {quantity}" + ("" if limit is None else f" = {show(limit)}")


def legend(lines: Sequence[dict]) -> dict[str, str]:
    """A letter for each origin, by its text."""
    texts = dict.fromkeys(origin_text(line) for line in lines)
    return {text: f"[{number}]" for number, text in enumerate(texts, start=1)}


def origin_text(line: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    source = f"; source: {line['source']}" if line.get("source") else ""
    driver = f"driver {line['driver'] or 'not recorded'}"
    return f"{line['card']}, {driver}, commit {line['commit']}, {line['date']}; {versions}{source}"


def main_rows(row: Row, lines: Sequence[dict], letters: dict[str, str]) -> list[str]:
    mine = [line for line in lines if line["row"] == row.name]
    if not mine:
        bars = "; ".join(f"{bar_text(bar)}: not measured" for bar in row.bars)
        return [cells(row.name, "", "", "", "", "", "", bars, "not measured")]
    return [main_row(row, line, lines, letters[origin_text(line)]) for line in mine]


def main_row(row: Row, line: dict, lines: Sequence[dict], letter: str) -> str:
    tokens, mfu, step = line.get("tokens_per_s"), line.get("mfu"), line.get("step_s")
    phases = ", ".join(f"{name} {seconds:.3g}" for name, seconds in line.get("phases", {}).items())
    return cells(
        row.name,
        letter,
        f"{tokens:,}" if tokens else "",
        f"{step:.3g}" if step else "",
        f"{100 * mfu:.1f} %" if mfu else "",
        line.get("peak_gib") or "",
        phases,
        "; ".join(f"{bar_text(bar, line['card'], lines)}: {verdict(bar, line, lines)}" for bar in row.bars),
        f"failed: {line['failed']}" if "failed" in line else line.get("note", ""),
    )


def kernel_rows(row: Row, lines: Sequence[dict], letters: dict[str, str]) -> list[str]:
    mine = [line for line in lines if line["row"] == row.name]
    if not mine:
        return [cells(row.name, "", "", "", "", "", "", "", "not measured")]
    found = []
    for line in mine:
        timings, letter = [Timing(**timing) for timing in line.get("timings", ())], letters[origin_text(line)]
        found += [kernel_row(timing, timings, line, letter) for timing in timings]
        if "failed" in line:
            found.append(cells(row.name, "", letter, "", "", "", "", "", f"failed: {line['failed']}"))
    return found


def kernel_row(timing: Timing, timings: Sequence[Timing], line: dict, letter: str) -> str:
    bar, found = bar_of(timing), verdict_of(timing, timings)
    ratio = (found.ratio, found.clock) if found else times_floor(timing, timings)
    extra_gb = None if timing.peak_bytes is None else timing.peak_bytes / 1e9
    limit = "" if bar is None else f"≤ {bar.most}" + (f", ≤ {bar.most_gb} GB" if bar.most_gb else "")
    word = "not measured" if found is None else judged(line, "met" if found.is_met else "missed")
    return cells(
        f"{timing.what}, {timing.who}",
        timing.shape,
        letter,
        number(timing.time_ms),
        number(timing.wall_ms),
        "{:.2f} ({})".format(*ratio) if ratio else "",
        number(extra_gb, 1),
        limit,
        timing.note if timing.wall_ms is None else word if bar else "",
    )


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def cells(*values: object) -> str:
    return "| " + " | ".join(str(value).replace("|", "/") for value in values) + " |"


def markdown(lines: Sequence[dict]) -> str:
    lines = newest(lines)
    letters = legend(lines)
    page = [HEAD, "| row | where | tokens/s | s a step | MFU | peak GiB | by phase, s | bars | note |"]
    page.append("|---" * 9 + "|")
    for row in (row for kind in ("train", "iteration", "tests") for row in ROWS if row.kind == kind):
        page += main_rows(row, lines, letters)
    page += ["", KERNELS, ""]
    page.append("| what, who | shape | where | device ms | wall ms | × floor | extra GB | bar | verdict |")
    page.append("|---" * 9 + "|")
    for row in ROWS:
        if row.kind == "kernels":
            page += kernel_rows(row, lines, letters)
    page += ["", *(f"- {letter} {text}" for text, letter in letters.items())]
    return "\n".join(page) + "\n"
