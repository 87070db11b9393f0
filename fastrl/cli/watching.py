"""`fastrl watch`: a run as a page, or in the terminal."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastrl.cli.arguments import parse
from fastrl.config.schema import WithPaths


@dataclass(frozen=True)
class WatchCommand(WithPaths):
    """A page of a run, live while it goes on: fastrl watch RUN [RUN] [--port N]; --text: in this terminal"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """One run folder, or two that are drawn together."""
    port: int = 0
    """Of http://127.0.0.1:PORT/; 0: one that is free."""
    text: bool = False
    """A live view in the terminal instead of a page."""
    once: bool = False
    """With --text: say it once and end."""
    report: bool = False
    """Write RUN/report.html and end, as a run does by itself when it ends."""


def watch_command(arguments: list[str]) -> None:
    """A run as a page, live while it goes on, or in the terminal."""
    command = parse(WatchCommand, arguments, "watch")
    from fastrl.watch.watch import watch

    watch(list(command.runs), command.port, is_text=command.text, is_once=command.once, is_report=command.report)
