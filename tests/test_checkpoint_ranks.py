"""Checkpoints of one process and of two (gloo, FSDP2 shards) into each other, written while training goes on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchrun import torchrun
from transformers import AutoModelForCausalLM

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.records import checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.model_export import ModelExport

pytestmark = pytest.mark.distributed


def save_alone(model_folder: Path, folder: Path) -> Path:
    """A checkpoint of one process with plain tensors, after a step."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    optimizer = MasterOptimizer(model, OptimizerConfig(lr=1e-2), num_steps=100)
    model(input_ids=torch.arange(2, 9)[None], labels=torch.arange(2, 9)[None]).loss.backward()
    optimizer.step()
    writer = CheckpointWriter(folder, 1, ModelExport(model, None))
    writer.save(1, optimizer.state_tensors(), {})
    writer.wait()
    writer.close()
    return folder / "step-000001"


def test_one_and_two_processes_read_each_others_checkpoints(family_folder, tmp_path):
    """qwen3 has an untied head of 517 rows, which two ranks share unevenly."""
    alone, folder = save_alone(family_folder("qwen3"), tmp_path / "alone"), tmp_path / "ranks"
    process = torchrun(2, [str(Path(__file__).parent / "checkpoint_ranks.py"), str(alone), str(folder)])
    output = process.stdout + process.stderr
    assert process.returncode == 0 and all(f"rank {rank}: all good" in output for rank in range(2)), output

    expected = load_file(folder / "expected.safetensors")
    for name in ("step-000001", "best"):
        assert checkpoints.defect(folder / name) is None
        found = checkpoints.load_tensors(folder / name)
        assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in expected)
    served = AutoModelForCausalLM.from_pretrained(folder / "step-000001")
    assert served.dtype == torch.bfloat16
    for name, parameter in served.named_parameters():
        assert parameter.equal(expected[f"master.{name}"].bfloat16())
    assert not list(folder.glob(".*"))
