"""Starting a script or a command as several processes, as `torchrun` on one machine does."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def torchrun(num_ranks: int, command: Sequence[str], *, timeout_s: float = 280) -> subprocess.CompletedProcess:
    """A Python script and its arguments, or a console script, on num_ranks processes with one thread each."""
    return subprocess.run(_full(num_ranks, command), env=_env(), capture_output=True, text=True, timeout=timeout_s)


@contextmanager
def launch(num_ranks: int, command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """As `torchrun`, while the block runs; standard error goes to standard output."""
    full = _full(num_ranks, command)
    with subprocess.Popen(full, env=_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _full(num_ranks: int, command: Sequence[str]) -> list[str]:
    is_script = command[0].endswith(".py")
    options = ["--standalone", "--nproc-per-node", str(num_ranks), *([] if is_script else ["--no-python"])]
    return [sys.executable, "-m", "torch.distributed.run", *options, *command]


def _env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
