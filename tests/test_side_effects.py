"""A process without the C++ kernels, and the CUDA stream that an engine leaves behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrl.sampling.side_effects import own_stream

ROOT = Path(__file__).parents[1]
CODE = """
import torch, fastrl.kernels as k
from fastrl.doctor import report
assert k.choose("policy_loss", "cpu", torch.float32).backend == "reference"
hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
k.linear_policy_loss(hidden, k.Head(weight), torch.arange(5), torch.ones(5), 0.2, k.TokenLoss()).loss.backward()
assert hidden.grad.any()
import fastrl.trainer, fastrl.training, fastrl.plan, fastrl.evaluation_run
print(report())
"""


def test_everything_but_the_cpu_kernels_runs_without_them(tmp_path):
    """Python files alone, as a machine without a C++ compiler or `bench/stage.sh` has them."""
    shutil.copytree(ROOT / "fastrl", tmp_path / "fastrl")
    shutil.copytree(ROOT / "kernels", tmp_path / "fastrl" / "kernels")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "kernel policy_loss: reference (fastrl._native, the C++ kernels, is not built here)" in process.stdout


@pytest.mark.gpu
def test_the_thread_gets_its_stream_back():
    before = torch.cuda.current_stream()
    with own_stream():
        torch.cuda.set_stream(torch.cuda.Stream())
    assert torch.cuda.current_stream() == before
