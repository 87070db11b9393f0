"""Starting a script or a command as several processes, as `torchrun` on one machine does."""

import os
import subprocess
import sys
from collections.abc import Sequence


def torchrun(num_ranks: int, command: Sequence[str], *, timeout_s: float = 280) -> subprocess.CompletedProcess:
    """A Python script and its arguments, or a console script, on num_ranks processes with one thread each."""
    is_script = command[0].endswith(".py")
    options = ["--standalone", "--nproc-per-node", str(num_ranks), *([] if is_script else ["--no-python"])]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
