"""report.html: a run as one file that opens by double click, with the page of `fastrl watch` and its data inside.

Of the rollouts it has a sample: those of steps that are evenly spaced, the first and the last among them.
"""

from collections.abc import Iterator
from pathlib import Path

from fastrl.evaluation.kept import kept_path, load_kept
from fastrl.records.durable import write_file
from fastrl.records.jsonl import as_json
from fastrl.watch.answers import answer
from fastrl.watch.page import embedded, page
from fastrl.watch.rollout_view import BROKEN, mean_credit, rollout_files, rollout_rows, shown
from fastrl.watch.snapshot import RunView

MOST_ROLLOUTS, MOST_STEPS, MOST_ANSWERS, MOST_EVALUATIONS = 2000, 40, 2000, 4
ROLLOUT_BYTES, ANSWER_BYTES = 8 << 20, 4 << 20  # as they stand in the file
NUM_TOKENS, NUM_CHARS = 4000, 20_000  # of one rollout


def write_report(run: Path) -> Path:
    """Write RUN/report.html, replacing an earlier one. ValueError where RUN is no run folder."""
    path = run / "report.html"
    view = RunView(run)
    write_file(path, page(f"{view.name}: fastrl", report_data(view)))
    return path


def report_data(view: RunView) -> dict:
    """`runs` as the server gives them; `rollouts` with how many there are on disk; `completions` by evaluation.

    A file that cannot be read is counted, or named in place of its rows: the rest of the report stands.
    """
    files, unreadable = rollout_files(view.path / "rollouts"), set()
    chosen = _spaced(list(files.items()), MOST_STEPS)
    sample = list(_within(_rollouts(chosen, unreadable), MOST_ROLLOUTS, ROLLOUT_BYTES))
    rollouts = {"rows": sample, "num_files": len(files), "num_sampled_files": len({row["step"] for row in sample})}
    rollouts["num_unreadable"] = len(unreadable)
    kept = _spaced([f for f in view.evaluation_files() if kept_path(f).exists()], MOST_EVALUATIONS)
    completions = {file.stem: _answers(file, len(kept)) for file in kept}
    return as_json({"runs": [view.snapshot()], "rollouts": rollouts, "completions": completions})


def _answers(evaluation: Path, num_evaluations: int) -> dict:
    try:
        rows = load_kept(evaluation)
    except ValueError as error:
        return {"error": str(error)}
    most = MOST_ANSWERS // num_evaluations, ANSWER_BYTES // num_evaluations
    return {"total": len(rows), "rows": list(_within(map(answer, rows), *most))}


def _rollouts(files: list[tuple[int, Path]], unreadable: set[int]) -> Iterator[dict]:
    """In turns, one of each file, so that any number of them is spread over all files."""
    readers = {step: _file_rows(step, path, unreadable) for step, path in files}
    while readers:
        found = {step: row for step, reader in readers.items() if (row := next(reader, None))}
        yield from found.values()
        readers = {step: readers[step] for step in found}


def _file_rows(step: int, path: Path, unreadable: set[int]) -> Iterator[dict]:
    """Up to what cannot be read, which is noted."""
    try:
        for line, row in enumerate(rollout_rows(path)):
            yield {"step": step, "line": line, "credit": mean_credit(row), **shown(row, NUM_TOKENS, NUM_CHARS)}
    except BROKEN:
        unreadable.add(step)


def _within(rows: Iterator[dict], most: int, num_bytes: int) -> Iterator[dict]:
    for _, row in zip(range(most), rows, strict=False):
        num_bytes -= len(embedded(as_json(row)))
        if num_bytes < 0:
            return
        yield row


def _spaced(items: list, most: int) -> list:
    """So many at most, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
