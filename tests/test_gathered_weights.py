"""Two processes with gloo, FSDP2 shards and one vLLM engine each: gathered, proven, stale on purpose."""

import re
from pathlib import Path

import pytest
import torch
from torchrun import torchrun

from fastrl.sampling.weights.choose import share_weights

pytestmark = [pytest.mark.vllm, pytest.mark.distributed]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_shards_are_gathered_into_vllms_tensors(family_folder, family):
    process = torchrun(2, [str(Path(__file__).parent / "gather_ranks.py"), str(family_folder(family))])
    output = process.stdout + process.stderr
    assert process.returncode == 0 and all(f"rank {rank}: all good" in output for rank in range(2)), output
    first, second = re.findall(r"tokens (.*)", output)
    assert first != second  # each process samples for itself


def test_gather_is_for_shards():
    with pytest.raises(ValueError, match="'gather' is for sharded parameters"):
        share_weights("gather", None, torch.nn.Linear(2, 2), print)
