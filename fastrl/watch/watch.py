"""`fastrl watch`: which of the ways to look at a run is taken."""

from collections.abc import Sequence
from pathlib import Path

from fastrl.watch.report import write_report
from fastrl.watch.server import serve
from fastrl.watch.terminal import show


def watch(paths: Sequence[Path], port: int, *, is_text: bool, is_once: bool, is_report: bool) -> None:
    """Of one or two run folders. ValueError for other numbers of them and for ways that exclude each other."""
    if not 1 <= len(paths) <= 2:
        raise ValueError(f"fastrl watch takes one run folder or two, got {len(paths)}; fastrl compare takes more")
    if is_once and not is_text:
        raise ValueError("--once is for the terminal's view: it goes with --text")
    if is_report and is_text:
        raise ValueError("--report and --text are two ways to look at a run: give one of them")
    if is_report:
        for path in paths:
            print(f"report: {write_report(path)}")
    elif is_text:
        show(paths, is_once=is_once)
    else:
        serve(paths, port)
