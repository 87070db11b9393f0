"""Files that a power cut leaves whole: their bytes reach the disk before their names do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all; missing folders are made. On return it is on disk."""
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the block a draft path beside `path`, for a file or a folder; then syncs the draft and renames it.

    If the block fails the draft is deleted. A folder can only replace an empty folder.
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
    """Make a folder and its missing parents, and sync the entry of each."""
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
