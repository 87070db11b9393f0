"""A lock on something that has one owner at a time. It ends with its process, however that ends."""

import fcntl
import os
import socket
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

from fastrl.records.durable import make_folder


class Lock(AbstractContextManager):
    """Held from construction until `close`. ValueError that names the process which already holds it.

    path: a file that exists while the lock is held; its folder is made. what: the owned thing in the user's words.
    Child programs do not inherit the lock. On a file system without locks it warns, and keeps nobody out.
    """

    def __init__(self, path: Path, what: str):
        make_folder(path.parent)
        self.path = path
        self._descriptor: int | None = _locked(path, what)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def close(self) -> None:
        """Give it up; a second call does nothing."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __exit__(self, *error: object) -> None:
        self.close()


def lock_beside(path: Path, setting: str) -> Lock:
    """A lock for making `path`, which does not exist yet."""
    return Lock(path.with_name(f".{path.name}.lock"), f"{setting} = '{path}'")


def _locked(path: Path, what: str) -> int:
    """A locked descriptor of the file at `path`. The file is opened again if its last owner deletes it meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 999).decode() or "another process"
            os.close(descriptor)
            raise ValueError(f"{what} is in use by {owner}: wait for its end, or choose another place") from None
        except OSError as error:
            warnings.warn(f"{what}: this file system has no locks ({error}); start nothing twice there", stacklevel=3)
        if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)
