"""A power cut, a kill or a torn write at any file event of a run: resumed, it ends bitwise as if nothing had been."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "stride"), [("unsynced", 1), ("before", 4), ("torn", 2)])
def test_a_run_survives_a_kill_at_every_file_event(tmp_path, mode, stride):
    program = Path(__file__).with_name("chaos_kills.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(program.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(tmp_path), mode, str(stride)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    *failures, summary = result.stdout.splitlines()
    assert not failures, "\n".join([*failures, summary])
    assert int(summary.split()[0]) > 20, summary
