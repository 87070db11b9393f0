"""`optimizer.offload`: shards in CPU memory, one process, make the run of whole parameters, also when it is resumed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import NUM_STEPS, config_of

from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.records.jsonl import read_jsonl

pytestmark = pytest.mark.distributed
FASTRL = str(Path(sys.executable).with_name("fastrl"))


def train(config: Path, *options: str) -> str:
    """Without torchrun: the run makes its process group of one, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [FASTRL, "train", str(config), "--model.device", "cpu", "--sampler.kind", "embedded", *options]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def weights(config: Path) -> dict:
    return load_file(config.with_suffix("") / "checkpoints" / f"step-{NUM_STEPS:06d}" / "model.safetensors")


def interrupt(finished: Path, folder: Path) -> None:
    """What a run would have left that was killed after its checkpoint of step 2."""
    shutil.copytree(finished, folder)
    last = f"step-{NUM_STEPS:06d}"
    shutil.rmtree(folder / "checkpoints" / last)


def test_an_offloaded_run_makes_the_run_of_whole_parameters(countdown_folder, tmp_path):
    paths = {name: tmp_path / f"{name}.toml" for name in ("plain", "offloaded", "resumed")}
    for name, path in paths.items():
        path.write_text(to_toml(config_of(tmp_path / name, countdown_folder)))
    assert main(["train", str(paths["plain"]), "--model.device", "cpu", "--sampler.kind", "embedded"]) == 0
    said = train(paths["offloaded"], "--optimizer.offload", "True")
    assert "FSDP2: float32 shards on 1 ranks, in CPU memory" in said
    interrupt(tmp_path / "offloaded", tmp_path / "resumed")
    said = train(paths["resumed"], "--optimizer.offload", "True", "--resume")
    assert "resuming from" in said and "step-000002" in said
    plain, before = weights(paths["plain"]), load_file(countdown_folder / "model.safetensors")
    assert max((plain[name] - before[name]).abs().max().item() for name in before) > 1e-3
    plain_log = read_jsonl(tmp_path / "plain" / "metrics.jsonl")
    for name in ("offloaded", "resumed"):
        ours = weights(paths[name])
        assert ours.keys() == plain.keys()
        worst = max((ours[key] - plain[key]).abs().max().item() for key in plain)
        assert worst < 2e-5, (name, worst)
        log = read_jsonl(tmp_path / name / "metrics.jsonl")
        for key in ("step", "reward/mean", "update/tokens", "rollouts/num_positive"):
            assert [line.get(key) for line in log] == [line.get(key) for line in plain_log], (name, key)
