"""A disk that really fills up while a checkpoint is written: one message, nothing lost, bitwise on after `--resume`.

The disk is a tmpfs in a mount namespace of the test's own; where the kernel gives none to us, the test is skipped.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_training import assert_bitwise_equal, config_of, weights

from fastrl.config.files import to_toml
from fastrl.config.schema import EvaluationConfig, TrainConfig
from fastrl.records import checkpoints
from fastrl.run.training import train

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
SCRIPT = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
{command} || echo status $?
ls -A {disk}/run/checkpoints
mount -o remount,size=64m {disk}
{command} --resume
cp -r {disk}/run {copy}
"""


def quiet_config(folder: Path, model: Path) -> TrainConfig:
    """Checkpoints after steps 2, 4, 6 and no evaluation."""
    config = replace(config_of(folder, model), evaluation=EvaluationConfig(at_end=False))
    return replace(config, run=replace(config.run, num_steps=6))


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_full_disk_loses_no_checkpoint_and_resume_is_bitwise(countdown_folder, tmp_path):
    undisturbed = train(quiet_config(tmp_path / "undisturbed", countdown_folder))
    checkpoint_bytes = sum(p.stat().st_size for p in (undisturbed / "checkpoints" / "step-000006").rglob("*"))
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    probe = subprocess.run([*NAMESPACE, f"mount -t tmpfs tmpfs {disk}"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no mount namespace here: {probe.stderr.strip()}")
    (tmp_path / "config.toml").write_text(to_toml(quiet_config(disk / "run", countdown_folder)))
    script = SCRIPT.format(
        size=int(2.6 * checkpoint_bytes),  # two checkpoints and the records fit, the draft of a third does not
        disk=disk,
        copy=copy,
        command=f"{sys.executable} -m fastrl.cli train {tmp_path / 'config.toml'}",
    )
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    result = subprocess.run([*NAMESPACE, script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "\nstatus 2\nstep-000002\nstep-000004\n" in result.stdout
    assert "step-000006 could not be written" in result.stderr and "No space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert_bitwise_equal(weights(undisturbed, 6), weights(copy, 6))
    assert checkpoints.defect(copy / "checkpoints" / "step-000006") is None
