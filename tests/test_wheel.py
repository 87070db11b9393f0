"""The built wheel: only `fastrl` at the top, the native kernels inside, usable away from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_works_away_from_the_repository(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(ROOT), "-w", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("fastrl-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert sorted(p.name.split("-")[0] for p in site.iterdir()) == ["fastrl", "fastrl"]
    assert (site / "fastrl" / "evaluation" / "comparison.html").is_file()
    assert {p.suffix for p in (site / "fastrl" / "watch").iterdir()} == {".py", ".html", ".css", ".js"}
    code = (
        "import fastrl, fastrl._native, fastrl.kernels.native as n, torch;"
        "print(fastrl.__file__, fastrl._native.__file__);"
        "print(n.path(), n.__file__); from fastrl.cli import main; main(['doctor'])"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(path.startswith(str(site)) for path in lines[0].split()), lines[0]
    assert "kernel token_logprobs: native" in result.stdout
