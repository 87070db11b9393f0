"""Rows of a dataset: JSON lines or Parquet on disk, a folder of them, or a Hugging Face dataset by id or saved folder.

Every row comes with `where` ("train.jsonl:17"), so that an error can say which row it is about.
"""

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

from .hugging_face import read_hugging_face
from .problem import Prompt

PROMPT_FIELDS = ("prompt", "problem", "question")


class UnusableRow(ValueError):
    """A well-formed row without what it needs: a null, empty or absent answer. A few are skipped and counted."""


def read_rows(source: str, default_split: str) -> list[tuple[str, dict]]:
    """All rows of `source` as (where, fields).

    source: a path to JSON lines or a Parquet file, or a Hugging Face dataset as `id`, `id:split` or `id:config:split`,
        where id may be a folder: one that `Dataset.save_to_disk` wrote, or of Parquet or JSON-lines files; split may be
        a part of one: `train[:1000]`.
    default_split: the split of a Hugging Face dataset whose source names none.
    Raises FileNotFoundError for a missing file and ValueError for an unreadable or empty dataset.
    """
    path = Path(source).expanduser()
    is_path = source.startswith(("/", "./", "../", "~"))
    is_file_name = is_path or path.suffix in (".jsonl", ".json", ".ndjson", ".parquet")
    if path.is_file() and path.suffix != ".parquet":
        rows = list(read_json_lines(path))
    elif is_file_name and not path.is_file() and not Path(source.split(":")[0]).expanduser().is_dir():
        raise FileNotFoundError(f"no such file: {source!r} (looked in {Path.cwd()})")
    else:
        rows = list(read_hugging_face(source, default_split))
    if not rows:
        raise ValueError(f"{source!r} has no rows; at least one is needed")
    for where, fields in rows:
        _check_unicode(fields, where)
    return rows


def _check_unicode(value: object, where: str) -> None:
    """ValueError for a lone surrogate: half of a character, left by a cut inside an escape. No tokenizer takes it."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{where}: a lone surrogate, half of a character, in {value!a:.80}")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_unicode(item, where)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a JSON-lines file, blank lines skipped; ValueError names file and line of what is not a JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                fields = json.loads(line)
            except RecursionError:
                raise ValueError(f"{where}: brackets are nested too deeply to be read: {line[:80]!r}") from None
            except ValueError as error:  # includes UnicodeDecodeError
                raise ValueError(f"{where}: not a JSON object on one line ({error}): {line[:80]!r}") from error
            if not isinstance(fields, dict):
                raise ValueError(f"{where}: expected a JSON object, found {type(fields).__name__}: {line[:80]!r}")
            yield where, fields


def with_columns(fields: dict, columns: Mapping[str, str], where: str) -> dict:
    """The row with other names for its columns: new name → the one in the data. The rest stay as they are.

    Another column that has the new name gives way. ValueError, with the columns there are, for one that is not there.
    """
    if missing := [old for old in columns.values() if old not in fields]:
        raise ValueError(f"{where}: task.columns names {missing[0]!r}, but the row has {sorted(fields)}")
    kept = {name: value for name, value in fields.items() if name not in columns.values()}
    return kept | {new: fields[old] for new, old in columns.items()}


def require_prompt(fields: dict, names: tuple[str, ...], where: str) -> Prompt:
    """As `require_text`, or a chat: a list of messages, each with `role` and `content` as text."""
    name = next((name for name in names if fields.get(name) is not None), "")
    if not isinstance(fields.get(name), list):
        return require_text(fields, names, where)
    messages = fields[name]
    are_messages = all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
    if not messages or not are_messages or not all(isinstance(m.get("content"), str) for m in messages):
        raise ValueError(
            f"{where}: field {name!r} must be text or messages with 'role' and 'content', found {messages!r:.80}"
        )
    return messages


def require_text(fields: dict, names: tuple[str, ...], where: str) -> str:
    """The first of the fields `names` that is not null or empty, as text; a number in decimal digits.

    Raises UnusableRow, with the keys found, where all are null, empty or absent; ValueError for another type.
    """
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return number_text(value, f"{where}: field {name!r}")
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: field {name!r} must be text, found {value!r}")
    empty = [name for name in names if name in fields]
    if empty:
        raise UnusableRow(f"{where}: field {empty[0]!r} is {'null' if fields[empty[0]] is None else 'empty'}")
    wanted = " or ".join(repr(name) for name in names)
    raise UnusableRow(f"{where}: no field {wanted}; the row has {sorted(fields)}")


def number_text(value: float, what: str) -> str:
    """A JSON number in plain decimal digits: 5.0 is 5, 1e-05 is 0.00001. ValueError for NaN and infinity."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, found {value}")
    digits = format(Decimal(repr(value)), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
