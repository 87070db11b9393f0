"""Runs triton_interpreted.py under TRITON_INTERPRET=1, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def test_the_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", str(FOLDER / "triton_interpreted.py"), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, cwd=FOLDER.parent, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 70, done.stdout
    assert "skipped" not in done.stdout, done.stdout
