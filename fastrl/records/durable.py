"""Files that a power cut leaves whole: their bytes are on disk before they have their name, then the name is."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Put `content` under `path`, all of it or nothing; folders are made. On return it is on disk."""
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path`, of a file or a folder, for the block to write; then it is synced and renamed.

    It goes if the block fails. A folder can only replace an empty one.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.draft")
    if draft.is_dir():
        shutil.rmtree(draft)
    try:
        yield draft
        sync_tree(draft)
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, each entry synced."""
    path = path.absolute()
    if missing := [p for p in (path, *path.parents) if not p.exists()]:
        path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` of a file, or of a folder and of everything below it."""
    for path in [folder, *folder.rglob("*")]:
        sync(path)
