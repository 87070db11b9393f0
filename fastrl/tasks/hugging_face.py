"""Rows of what the `datasets` package reads: a dataset of the hub, a folder it saved, a folder or file of Parquet.

Imported in the functions: the package is optional, and verifier workers do without it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder, of splits or of one dataset


def read_hugging_face(source: str, default_split: str) -> Iterator[tuple[str, dict]]:
    """(where, fields) of every row. source: `id`, `id:split` or `id:config:split`.

    id may be a folder or a file, split a part of one: `train[:1000]`.

    ValueError for a dataset that cannot be loaded, and for a split that it has not, with those that it has.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{source!r} is no file of JSON lines, and reading it as a Hugging Face dataset needs: "
            "pip install '.[tasks]' in fastrl's clone"
        ) from error
    name, config, split = _split_source(source, default_split)
    try:
        loaded = _load(datasets, Path(name).expanduser(), name, config)
    except Exception as error:  # the hub client raises its own, HTTP and parsing errors alike
        raise ValueError(
            f"cannot load {source!r}: {type(error).__name__}: {error}. "
            "Expected a JSON-lines file, a folder, or a Hugging Face dataset as id, id:split or id:config:split"
        ) from error
    for number, fields in enumerate(_chosen(datasets, loaded, source, split)):
        yield f"{name}:{split}, row {number}", dict(fields)


def _load(datasets: Any, path: Path, name: str, config: str | None) -> "Dataset | DatasetDict":
    if path.is_file():
        return datasets.load_dataset("parquet", data_files=str(path), split="train")
    if any((path / file).is_file() for file in SAVED):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path) if path.is_dir() else name, config)


def _chosen(datasets: Any, loaded: "Dataset | DatasetDict", source: str, split: str) -> "Dataset":
    """The split of a dataset that has several, or a part of it. One without splits, and a file, are any split."""
    name, bracket, _ = split.partition("[")
    if isinstance(loaded, dict):
        if name not in loaded:
            there = ", ".join(loaded)
            raise ValueError(f"{source!r} has no split {name!r}; it has {there}: name one of them behind a colon")
        loaded = loaded[name]
    if not bracket:
        return loaded
    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(loaded)})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{source!r}: {split} is no part of a split, such as train[:1000]: {error}") from error
    return loaded.select(range(part.from_, part.to))


def _split_source(source: str, default_split: str) -> tuple[str, str | None, str]:
    parts = re.split(r":(?![^\[]*\])", source)  # not the colon of a slice, as in train[1000:]
    if not all(parts) or len(parts) > 3:
        raise ValueError(f"cannot read dataset {source!r}: expected id, id:split or id:config:split")
    if len(parts) == 1:
        return parts[0], None, default_split
    return parts[0], parts[1] if len(parts) == 3 else None, parts[-1]
