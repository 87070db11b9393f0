"""JSON lines: appended, read back, and always valid JSON (NaN and infinity become null)."""

import gzip
import json
import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from fastrl.records.durable import sync


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Append one line of ASCII JSON per row, on disk on return; arrays become lists, NaN and infinity null."""
    with Path(path).open("a", encoding="ascii") as file:
        append(file, rows)
    sync(Path(path).parent)


def append(file: TextIO, rows: Iterable[dict]) -> None:
    """As `append_jsonl`, to an open file."""
    file.writelines(dump_line(as_json(row)) for row in rows)
    file.flush()
    os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON-lines file (.gz: compressed) without a torn last line. ValueError for a broken one before."""
    rows, content = [], Path(path).read_bytes()
    content = gzip.decompress(content) if Path(path).suffix == ".gz" else content
    lines = content.rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number} is not JSON: {error}") from error
    return rows


def dump_line(row: dict) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def as_json(value):
    """The value in JSON's types; ASCII escapes keep even a lone surrogate of a model's output."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and np.isfinite(value).all():
        return value.tolist()  # at once: rollouts have many numbers
    if hasattr(value, "tolist"):  # a NumPy or torch array or scalar
        return as_json(value.tolist())
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None
