"""Where results may go: a place of their own that can be written to."""

import os
from collections.abc import Collection
from pathlib import Path


def check_place(path: Path, setting: str, *, allowed: Collection[str] | None = ()) -> None:
    """ValueError or OSError, naming the setting, unless `path` is new, or a folder with nothing in it but `allowed`.

    allowed: names of files; None for any, as in a folder that other processes write to.
    The root and the home directory are refused, empty or not.
    """
    place = path.resolve()
    if place in (place.parent, Path(os.path.expanduser("~")).resolve()):
        raise ValueError(
            f"{setting} = '{path}' is {place}: a folder of its own is needed, such as {place / 'runs/new'}"
        )
    existing = next(p for p in (place, *place.parents) if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{setting} = '{path}': {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{setting} = '{path}': {existing} cannot be written to")
    if allowed is None or existing != place:
        return
    if others := sorted({p.name for p in place.iterdir()} - set(allowed)):
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise ValueError(f"{setting} = '{path}' holds other things ({shown}); choose a new or an empty folder")
