"""What a resumed run recorded after the checkpoint that it goes on from: set aside, so that each step is there once.

Lines go to NAME.dropped.jsonl, files to dropped/, where a later resumption replaces those of the same step.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from fastrl.records.durable import make_folder, sync, write_file
from fastrl.records.jsonl import append_jsonl, dump_line, read_jsonl

OF_A_STEP = re.compile(r"(?:step|validation)-(\d{6,})\.")


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the rows up to `step`; later ones go to NAME.dropped.jsonl beside it."""
    rows = read_jsonl(path) if path.exists() else []
    if dropped := [row for row in rows if row["step"] > step]:
        append_jsonl(path.with_suffix(".dropped.jsonl"), dropped)
    write_file(path, "".join(dump_line(row) for row in rows if row["step"] <= step))


def drop_files_after(run: Path, step: int) -> None:
    """Set the rollouts and evaluations of later steps aside, the plots and completions of an evaluation with it."""
    for folder in (run / "rollouts", run / "eval"):
        if later := list(_later_than(step, folder)):
            aside = run / "dropped" / folder.name
            make_folder(aside)
            for path in later:
                path.replace(aside / path.name)
            sync(aside)
            sync(folder)


def _later_than(step: int, folder: Path) -> Iterator[Path]:
    ended_later = {path.name.removesuffix("json") for path in folder.glob("*.json") if _step_of(path) > step}
    for path in sorted(folder.glob("*.*")):
        found = OF_A_STEP.match(path.name)
        if int(found[1]) > step if found else path.name.startswith(tuple(ended_later)):
            yield path


def _step_of(evaluation: Path) -> int:
    """The step that a file says it is of; 0 where it says none, or is no evaluation."""
    try:
        step = json.loads(evaluation.read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return step if isinstance(step, int) else 0
