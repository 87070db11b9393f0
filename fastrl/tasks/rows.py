"""Rows of a dataset: JSON lines on disk, or a Hugging Face dataset by id or local folder.

Every row comes with `where` ("train.jsonl:17"), so that an error can say which row it is about.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from .problem import Prompt

PROMPT_FIELDS = ("prompt", "problem", "question")


class UnusableRow(ValueError):
    """A well-formed row without what it needs: a null, empty or absent answer. A few are skipped and counted."""


def read_rows(source: str, default_split: str) -> list[tuple[str, dict]]:
    """All rows of `source` as (where, fields).

    source: a path to JSON lines, or a Hugging Face dataset as `id`, `id:split` or `id:config:split`, where id may be a
        local folder that `datasets.load_dataset` understands, and split a part of one: `train[:1000]`.
    default_split: the split of a Hugging Face dataset whose source names none.
    Raises FileNotFoundError for a missing file and ValueError for an unreadable or empty dataset.
    """
    path = Path(source).expanduser()
    is_file_name = path.suffix in (".jsonl", ".json", ".ndjson") or source.startswith(("/", "./", "../", "~"))
    if path.is_file():
        rows = list(read_json_lines(path))
    elif is_file_name and not Path(source.split(":")[0]).expanduser().is_dir():
        raise FileNotFoundError(f"no such file: {source!r} (looked in {Path.cwd()})")
    else:
        rows = list(_read_hugging_face(source, default_split))
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


def _read_hugging_face(source: str, default_split: str) -> Iterator[tuple[str, dict]]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source!r} is not a file, and reading it as a Hugging Face dataset needs: pip install 'fastrl[tasks]'"
        ) from error
    name, config, split = _split_source(source, default_split)
    try:
        dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub client raises its own, HTTP and parsing errors alike
        raise ValueError(
            f"cannot load {source!r}: {type(error).__name__}: {error}. "
            "Expected a JSON-lines file, or a Hugging Face dataset as id, id:split or id:config:split"
        ) from error
    for number, fields in enumerate(dataset):
        yield f"{name}:{split}, row {number}", dict(fields)


def _split_source(source: str, default_split: str) -> tuple[str, str | None, str]:
    parts = re.split(r":(?![^\[]*\])", source)  # not the colon of a slice, as in train[1000:]
    if not all(parts) or len(parts) > 3:
        raise ValueError(f"cannot read dataset {source!r}: expected id, id:split or id:config:split")
    if len(parts) == 1:
        return parts[0], None, default_split
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1]
