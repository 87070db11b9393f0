"""Starting a script or a command as several processes, as `torchrun` does on one machine or on several."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shell import ENVIRONMENT


def torchrun(num_ranks: int, command: Sequence[str], *, timeout_s: float = 280) -> subprocess.CompletedProcess:
    """A Python script and its arguments, or a console script, on num_ranks processes with one thread each."""
    return subprocess.run(_full(num_ranks, command), env=_env(), capture_output=True, text=True, timeout=timeout_s)


def torchrun_nodes(num_nodes: int, command: Sequence[str], *, timeout_s: float = 280) -> list[str]:
    """As many torchruns as machines, one rank each, that meet at a port of this one. The output of each; all must end
    with status 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["--nnodes", str(num_nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", address]
    full = _full(1, command, options)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(full, env=_env(), **pipes) for _ in range(num_nodes)]
    try:
        outputs = [node.communicate(timeout=timeout_s)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert all(node.returncode == 0 for node in nodes), outputs
    return outputs


@contextmanager
def launch(num_ranks: int, command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """As `torchrun`, while the block runs; standard error goes to standard output."""
    full = _full(num_ranks, command)
    with subprocess.Popen(full, env=_env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _full(num_ranks: int, command: Sequence[str], options: Sequence[str] = ("--standalone",)) -> list[str]:
    is_script = command[0].endswith(".py")
    options = [*options, "--nproc-per-node", str(num_ranks), *([] if is_script else ["--no-python"])]
    return [sys.executable, "-m", "torch.distributed.run", *options, *command]


def _env() -> dict[str, str]:
    return ENVIRONMENT | {"PYTHONSAFEPATH": "1"}
