"""Two processes with gloo, FSDP2 shards and one vLLM engine each: gathered, proven, stale on purpose."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrl.sampling.share import share_weights

pytestmark = [pytest.mark.vllm, pytest.mark.distributed]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_shards_are_gathered_into_vllms_tensors(family_folder, family):
    script = Path(__file__).parent / "gather_ranks.py"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(family_folder(family))],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    for rank, output in enumerate(outputs):
        assert f"rank {rank}: all good" in output, output
    first, second = (output.split("tokens ")[1].split("\n")[0] for output in outputs)
    assert first != second  # each process samples for itself


def test_gather_is_for_shards():
    with pytest.raises(ValueError, match="'gather' is for sharded parameters"):
        share_weights("gather", None, torch.nn.Linear(2, 2), print)
