"""The terminal's view of runs, for a session over ssh: curves as rows of blocks, times, pass@k, the ledger."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastrl.watch.snapshot import RunView

BLOCKS = "▁▂▃▄▅▆▇█"
LOOK_EVERY_S = 2.0
SHOWN = {
    "reward/mean": "reward",
    "entropy/mean": "entropy, nats",
    "mismatch/mean_abs": "|Δlogp| of sampler",
    "rollouts/mean_tokens": "tokens a completion",
    "rollouts/truncated_share": "truncated share",
    "grad_norm": "gradient norm",
    "throughput/tokens_per_s": "tokens/s",
    "memory/resident_gib": "resident GiB",
    "memory/gpu_peak_gib": "GPU peak GiB",
}
OF_FUNCTIONS = ("/positive", "/negative", "/judged_share")  # the page has them; a screen has few rows
MOVED = {
    "left_penalised": "left the penalised",
    "to_correct": "correct",
    "to_other_wrong": "other wrong",
    "to_rest": "rest",
}


def show(paths: Sequence[Path], *, is_once: bool) -> None:
    """Until Ctrl-C, or once; once as well where standard output is no terminal, since nothing can be drawn anew."""
    runs, console = [RunView(path) for path in paths], Console()
    if is_once or not sys.stdout.isatty():
        console.print(_view(runs, console.width))
        return
    with Live(_view(runs, console.width), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(LOOK_EVERY_S)
            live.update(_view(runs, console.width), refresh=True)


def _view(runs: Sequence[RunView], width: int) -> Group:
    return Group(*(part for run in runs for part in run_parts(run.snapshot(), width)))


def run_parts(found: dict, width: int = 80) -> list:
    """What is said of one snapshot, as `rich` renderables."""
    parts: list = [Text(f"{_safe(found['name'])}  {_state(found)}", style="bold")]
    if found["steps"]:
        parts += [_curves(found, width), _times(found["metrics"])]
    if found["evaluations"]:
        parts.append(_evaluations(found["evaluations"], width))
    if found["ledger"]:
        moved = found["ledger"][-1]["moved"]
        said = ", ".join(f"{name} {'–' if moved[key] is None else f'{moved[key]:+.4f}'}" for key, name in MOVED.items())
        parts.append(Text(f"probability a prompt since step 0: {said}"))
    if found["warnings"]:
        step, text = found["warnings"][-1]
        parts.append(Text(f"step {step}: {_safe(text)}", style="yellow"))
    parts += [Text.assemble("cannot be read: ", _safe(said), style="yellow") for said in found["unreadable"]]
    return parts


def _state(found: dict) -> str:
    if not found["steps"]:
        return "no step yet"
    age = max(0.0, time.time() - found["written"])
    said = f"{age:.0f} s" if age < 120 else f"{age / 60:.0f} min" if age < 7200 else f"{age / 3600:.0f} h"
    return f"step {found['last_step']}/{found['num_steps'] or '?'}, written {said} ago"


def _curves(found: dict, width: int) -> Table:
    """A row a metric; least and most only where the terminal is wide enough for them."""
    numbers = {"last": lambda v: v[-1]} | ({"least": min, "most": max} if width >= 76 else {})
    table = Table(box=None, pad_edge=False)
    for name in ("", *numbers):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column(f"steps {found['steps'][0]}–{found['steps'][-1]}", no_wrap=True)
    rewards = [name for name in found["metrics"] if name.startswith("reward/") and not name.endswith(OF_FUNCTIONS)]
    own = {name: name for name in rewards if name not in SHOWN}
    num_blocks = max(8, min(60, width - 28 - 10 * len(numbers)))
    for name, label in (SHOWN | own).items():
        values = [v for v in found["metrics"].get(name, ()) if v is not None]
        if values and len(label) <= 40 and (name in SHOWN or any(values)):
            cells = (f"{number(values):.3g}" for number in numbers.values())
            table.add_row(_safe(label), *cells, sparkline(found["metrics"][name], num_blocks))
    return table


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Means of as many neighbours as make `width` blocks, from the least to the most; a space where none is known."""
    size = max(1, math.ceil(len(values) / width))
    buckets = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    means = [sum(bucket) / len(bucket) if bucket else None for bucket in buckets]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if mean is None else BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1)) if span else 0] for mean in means
    )


def _times(metrics: dict) -> Text:
    """Seconds of the last step by phase, those that took a hundredth of it at least."""
    last = {name[5:-2]: values[-1] for name, values in metrics.items() if name.startswith("time/") and values[-1]}
    total = sum(last.values())
    said = "  ".join(f"{name} {s:.2f}" for name, s in sorted(last.items(), key=lambda i: -i[1]) if s >= total / 100)
    return Text(f"seconds of a step: {said}")


def _evaluations(evaluations: Sequence[dict], width: int) -> Table:
    """The last ones, with as many k as there is room for, the first and the last among them."""
    ks = sorted({int(k) for e in evaluations for k in e["pass_at_k"]})
    most = max(2, (width - 18) // 11)
    ks = [ks[round(i * (len(ks) - 1) / (most - 1))] for i in range(most)] if len(ks) > most else ks
    table = Table(box=None, pad_edge=False)
    for name in ("pass@k, %", *(f"k={k}" for k in ks)):
        table.add_column(name, no_wrap=True)
    for evaluation in evaluations[-8:]:
        cells = (_percent(evaluation["pass_at_k"].get(str(k))) for k in ks)
        table.add_row(_safe(f"{evaluation['split'] or evaluation['name']} {evaluation['step']}"), *cells)
    return table


def _percent(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.1f} ±{50 * (interval[2] - interval[1]):.1f}"


def _safe(text: str) -> Text:
    """Without what would command a terminal."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))
