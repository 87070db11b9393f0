"""Commands as a user types them: console scripts on the path, one thread."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def follow(commands: str, folder: Path, timeout: float, **environment: str) -> str:
    """Run shell lines one after the other; what they said."""
    command = ["bash", "-euo", "pipefail", "-c", commands]
    variables = ENVIRONMENT | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
