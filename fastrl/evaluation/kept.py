"""What a model answered: the first completions of each problem of an evaluation, beside the evaluation's file.

NAME.completions.jsonl.gz, a line per completion: `problem_id`, `prompt`, `sample` (its number among the problem's),
`completion`, `reward` (null without a verdict), `is_correct`, `reason`, `answer`, `num_tokens`, `finish_reason`.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from fastrl.records.durable import write_file
from fastrl.records.jsonl import as_json, dump_line, read_jsonl

SUFFIX = ".completions.jsonl.gz"


def prompt_text(prompt: object) -> str:
    """A prompt as text: of a chat, a line with its role before each message."""
    if isinstance(prompt, list):
        turns = [message for message in prompt if isinstance(message, dict)]
        return "\n".join(f"[{turn.get('role', '')}]\n{turn.get('content', '')}" for turn in turns)
    return "" if prompt is None else str(prompt)


def kept_path(evaluation: Path) -> Path:
    """Where the completions of an evaluation's file are."""
    return evaluation.with_name(evaluation.name.removesuffix(".json") + SUFFIX)


def save_kept(rows: Sequence[dict], evaluation: Path) -> None:
    """Write them, or take away those of an earlier evaluation of this name where none are kept."""
    path = kept_path(evaluation)
    if rows:
        text = "".join(dump_line(as_json(row)) for row in rows)
        write_file(path, gzip.compress(text.encode(), compresslevel=5, mtime=0))
    else:
        path.unlink(missing_ok=True)


def load_kept(evaluation: Path) -> list[dict]:
    """Those of an evaluation's file; none where it kept none. ValueError for a file that is not ours."""
    path = kept_path(evaluation)
    try:
        rows = read_jsonl(path) if path.exists() else []
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a file of completions ({error})") from None
    if not all(isinstance(row, dict) and isinstance(row.get("completion"), str) for row in rows):
        raise ValueError(f"{path} is not a file of completions (a line has no text named completion)")
    return rows
