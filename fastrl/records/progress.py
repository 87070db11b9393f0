"""What a person sees while a run trains: a live view on a terminal, one plain line a step anywhere else.

step 41/200  reward 0.430  +176 −336 0:0  truncated 3%  entropy 0.38  |Δlogp| 3.0e-03  12.3k tok/s
gen 0.31 verify 0.02 train 0.55 s  left 2:23

The sign split counts rollouts with positive, negative and zero credit; truncated is the share of completions that were
cut. A value that was not measured shows as –. `no gradient` follows, with the reason, where a step moved nothing.
"""

import math
import os
import sys
import time
from collections import deque
from contextlib import AbstractContextManager
from typing import TextIO

from fastrl.records.step_metrics import no_gradient_reason

SHOWN_STEPS = 10
TEXTS = ("no gradient", "warnings")  # cells of any length
ASCII_FOR = str.maketrans({"−": "-", "–": "-", "Δ": "d", "…": "..."})


def open_progress(
    num_steps: int, *, is_live: bool | None = None, is_silent: bool = False, stream: TextIO | None = None
) -> "Progress":
    """The view of a run, a context manager.

    is_live None picks the live view when `stream` (None: standard output) is a terminal that can show it. Otherwise
    `update` and `message` write one flushed line each, in ASCII where the stream's encoding has no −, – or Δ.
    is_silent: shows nothing (one of several ranks talks).
    """
    if is_silent:
        return Progress()
    stream = sys.stdout if stream is None else stream
    is_live = _can_be_live(stream) if is_live is None else is_live
    return LiveView(num_steps, stream) if is_live else PlainView(num_steps, stream)


def _can_be_live(stream: TextIO) -> bool:
    is_unicode = (stream.encoding or "").lower().startswith("utf")
    return stream.isatty() and is_unicode and os.environ.get("TERM") != "dumb"


def step_cells(metrics: dict) -> dict[str, str]:
    """The texts shown for one step by column name; `pass@1`, `no gradient` and `warnings` only where there is one."""
    num = {sign: _text(metrics, f"rollouts/num_{sign}", "{:.0f}".format) for sign in ("positive", "negative", "zero")}
    cells = {
        "reward": _text(metrics, "reward/mean", "{:.3f}".format),
        "signs": f"+{num['positive']} −{num['negative']} 0:{num['zero']}",
        "truncated": _text(metrics, "rollouts/truncated_share", "{:.0%}".format),
        "entropy": _text(metrics, "entropy/mean", "{:.2f}".format),
        "|Δlogp|": _text(metrics, "mismatch/mean_abs", "{:.1e}".format),
        "tok/s": _text(metrics, "throughput/tokens_per_s", _thousands),
        "gen s": _text(metrics, "time/generate_s", _seconds),
        "verify s": _text(metrics, "time/verify_s", _seconds),
        "train s": _text(metrics, "time/train_s", _seconds),
    }
    if metrics.get("eval/pass_at_1") is not None:
        cells["pass@1"] = _text(metrics, "eval/pass_at_1", "{:.3f}".format)
    if reason := no_gradient_reason(metrics):
        cells["no gradient"] = reason
    if metrics.get("warnings"):
        cells["warnings"] = str(metrics["warnings"])
    return cells


def step_line(step: int, num_steps: int, metrics: dict, left_s: float | None = None) -> str:
    """One step as one line of text, as in the module's docstring; what not every step has follows.

    left_s: seconds until the last step; None: not known.
    """
    cells = step_cells(metrics)
    parts = [
        f"step {step}/{num_steps}",
        f"reward {cells['reward']}",
        cells["signs"],
        f"truncated {cells['truncated']}",
        f"entropy {cells['entropy']}",
        f"|Δlogp| {cells['|Δlogp|']}",
        f"{cells['tok/s']} tok/s",
        f"gen {cells['gen s']} verify {cells['verify s']} train {cells['train s']} s",
    ]
    parts += [] if left_s is None else [f"left {duration(left_s)}"]
    parts += [f"pass@1 {cells['pass@1']}"] if "pass@1" in cells else []
    parts += [f"{name}: {cells[name]}" for name in TEXTS if name in cells]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """0:09, 12:30, 1:02:03 or 2 d 03:04."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours < 24 else f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"


def _text(metrics: dict, name: str, form) -> str:
    value = metrics.get(name)
    return "–" if value is None or not math.isfinite(value) else form(value)


def _thousands(value: float) -> str:
    for limit, scale, suffix in ((999.5, 1, ""), (999_950, 1e3, "k")):
        if value < limit:
            return f"{value / scale:.{1 if suffix else 0}f}{suffix}"
    return f"{value / 1e6:.1f}M"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


class Progress(AbstractContextManager):
    """What a view of a run does; this one shows nothing."""

    def update(self, step: int, metrics: dict) -> None:
        """Show the finished step, counted from 1. The metrics read are those of `step_cells`."""

    def message(self, text: str) -> None:
        """Show a text that stays, such as a warning."""

    def __exit__(self, *error: object) -> None: ...


class PlainView(Progress):
    """One line a step."""

    def __init__(self, num_steps: int, stream: TextIO) -> None:
        self._num_steps, self._stream = num_steps, stream
        self._has_reader = True
        self._start_s, self._num_shown = time.monotonic(), 0

    def update(self, step: int, metrics: dict) -> None:
        """The steps that are left will take as long as the mean of those shown, whatever came between them."""
        self._num_shown += 1
        left_s = (time.monotonic() - self._start_s) / self._num_shown * (self._num_steps - step)
        self.message(step_line(step, self._num_steps, metrics, left_s))

    def message(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(ASCII_FOR).encode(encoding, "backslashreplace").decode(encoding)
        try:
            if self._has_reader:
                print(text, file=self._stream, flush=True)
        except BrokenPipeError:  # `| head` has seen enough; the run goes on, metrics.jsonl has everything
            self._has_reader = False


class LiveView(Progress):
    """A table of the last steps above a bar with the time left, redrawn in place; messages scroll above it."""

    def __init__(self, num_steps: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn())
        self._bar = Bar(TextColumn("step"), *columns, *left, speed_estimate_period=86_400)  # a step may take an hour
        self._task = self._bar.add_task("steps", total=num_steps)
        self._rows: deque[tuple[int, dict[str, str]]] = deque(maxlen=SHOWN_STEPS)
        self._console = Console(file=stream, force_terminal=True)
        self._live = Live(self._bar, console=self._console, refresh_per_second=4)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def update(self, step: int, metrics: dict) -> None:
        from rich.console import Group

        cells = step_cells(metrics)
        self._rows.append((step, cells))
        self._bar.update(self._task, completed=step)
        self._live.update(Group(*step_tables(list(self._rows), self._console.width), self._bar))
        for name in TEXTS:
            if name in cells:
                self.message(f"step {step}: {name}: {cells[name]}")

    def message(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False, highlight=False)


def step_tables(rows: list[tuple[int, dict[str, str]]], width: int) -> list:
    """`rich` tables of (step, `step_cells`) rows: one, or several of fewer rows where one is wider than `width`.

    A column appears when one of its rows has it; texts of any length are no columns.
    """
    names = [n for n in dict.fromkeys(name for _, cells in rows for name in cells) if n not in TEXTS]
    widths = {n: max(len(n), *(len(cells.get(n, "")) for _, cells in rows)) + 1 for n in names}
    step_width = max(len("step"), *(len(str(step)) for step, _ in rows))
    blocks: list[list[str]] = [[]]
    for name in names:
        if blocks[-1] and step_width + sum(widths[n] for n in [*blocks[-1], name]) > width:
            blocks.append([])
        blocks[-1].append(name)
    last = rows[-max(SHOWN_STEPS // len(blocks), 1) :]
    return [step_table(last, block) for block in blocks]


def step_table(rows: list[tuple[int, dict[str, str]]], names: list[str]):
    """One `rich` table: the step and the columns of these names."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), collapse_padding=True, header_style="bold", pad_edge=False)
    for name in ("step", *names):
        table.add_column(name, justify="right", no_wrap=True)
    for step, cells in rows:
        table.add_row(str(step), *(cells.get(name, "") for name in names))
    return table
