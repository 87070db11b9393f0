"""One command, one table: how fast this is, on a card that you name, beside TRL and beside what the card could do.

    bench/speedrun/run                       every row that OUT/speedrun.jsonl lacks for this card and commit
    bench/speedrun/run --call 1 --minutes 4  the rows of one of four calls: a quarter of an hour on a GPU in all
    bench/speedrun/run --only NAME...        these rows, measured again
    bench/speedrun/run --dry-run             tiny shapes on a CPU, the same code
    bench/speedrun/run --list                the rows, with their calls and seconds
    bench/speedrun/run --page                OUT/speedrun.md anew

Nothing is started that the minutes left will not see the end of. Each row is a process of its own, the kernels' one
together. Results are appended to OUT/speedrun.jsonl, OUT/speedrun.md and .png are made of them.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import torch
from figure import draw
from origin import measured_commit, origin
from page import markdown, read
from rows import BY_NAME, NUM_CALLS, ROWS, Row

BENCH = Path(__file__).resolve().parent.parent
RESERVE_S = 5.0  # to write what was measured


def chosen_rows(only: list[str], call: int | None) -> list[Row]:
    """ValueError for a name that is not a row."""
    unknown = [name for name in only if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no row is called {', '.join(unknown)}; the rows: {', '.join(BY_NAME)}")
    rows = [BY_NAME[name] for name in only] or ROWS
    return [row for row in rows if call in (None, row.call)]


def missing_rows(rows: list[Row], lines: list[dict], card: str, commit: str) -> list[Row]:
    """Those without a line of this card and commit. What was changed since its commit is always measured."""
    done = {line["row"] for line in lines if (line["card"], line["commit"]) == (card, commit) and "+" not in commit}
    return [row for row in rows if row.name not in done]


def processes(rows: list[Row]) -> Iterator[list[Row]]:
    """Kernels that follow one another share a process."""
    for _, group in itertools.groupby(rows, lambda row: row.kind if row.kind == "kernels" else row.name):
        yield list(group)


def fitting(rows: list[Row], left_s: float) -> list[Row]:
    """As many of the first rows as end in time."""
    ends = itertools.accumulate(row.seconds for row in rows)
    return [row for row, end in zip(rows, ends, strict=True) if end <= left_s]


def run_process(rows: list[Row], file: Path, commit: str, left_s: float, is_dry: bool) -> None:
    """Measure rows in a process of their own; one that dies is a line that says so, one that is late has none."""
    before, names = len(read(file)), [row.name for row in rows]
    command = [sys.executable, str(BENCH / "speedrun" / "measure.py"), str(file), commit, str(left_s / 60)]
    child = subprocess.Popen([*command, "dry" if is_dry else "full", *names], start_new_session=True)
    try:
        status = child.wait(left_s)
    except subprocess.TimeoutExpired:
        print(f"out of time during {names[len(read(file)) - before]}: start again to go on", flush=True)
        return
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status:
        line = {"row": names[len(read(file)) - before]} | origin(commit)
        with file.open("a") as results:
            results.write(json.dumps(line | {"failed": f"the process ended with status {status}"}) + "\n")


def run(rows: list[Row], file: Path, commit: str, minutes: float, is_dry: bool) -> None:
    end = time.monotonic() + 60 * minutes
    for group in processes(rows):
        left_s = end - time.monotonic() - RESERVE_S
        ready = group if is_dry else fitting(group, left_s)
        for row in group[len(ready) :]:
            print(f"not started: {row.name} needs about {row.seconds:.0f} s, {left_s:.0f} are left", flush=True)
        if ready:
            run_process(ready, file, commit, left_s, is_dry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BENCH / "results")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these rows, measured again")
    parser.add_argument("--call", type=int, choices=range(1, NUM_CALLS + 1))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--commit", help="what is measured, where there is no git")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    rows = chosen_rows(options.only, options.call)
    if options.list:
        print("\n".join(f"{row.name}: call {row.call}, about {row.seconds:.0f} s" for row in rows))
        return
    file = options.out / ("speedrun_dry.jsonl" if options.dry_run else "speedrun.jsonl")
    if options.page:
        write_page(file)
        return
    if not options.dry_run and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: --dry-run takes tiny shapes through the same code")
    commit = options.commit or measured_commit()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.only:
        rows = missing_rows(rows, read(file), origin(commit)["card"], commit)
    run(rows, file, commit, options.minutes, options.dry_run)
    write_page(file)


def write_page(file: Path) -> None:
    lines = read(file)
    file.with_suffix(".md").write_text(markdown(lines))
    draw(lines, file.with_suffix(".png"))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"speedrun: {error}")
