"""Run by torchrun: as `measure_training_peak.py`, for the first of several processes that shard the model (FSDP2).

torchrun --nproc-per-node 2 tests/measure_sharded_peak.py CONFIG.json TOKEN_BUDGET SEQUENCE_TOKENS REDUCE_EVERY
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from fastrl.policy.attention import choose_attention
from fastrl.policy.model import Policy
from fastrl.policy.recompute import blocks_of, recompute_blocks
from fastrl.policy.reduction import prepare_backward
from fastrl.policy.soundness import pack
from fastrl.rollouts import Rollouts

sys.path.insert(0, str(Path(__file__).parent))
from measure_training_peak import resident_bytes


def sharded_policy(config: PreTrainedConfig) -> Policy:
    """float32 shards, gathered in bfloat16, gradients reduced in float32; blocks are recomputed."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert pack(model, choose_attention("auto", model.device, torch.bfloat16, config)).is_packed
    recompute_blocks(model)
    policy = Policy(model)
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in [*blocks_of(model), policy]:
        fully_shard(module, mp_policy=precision)
    return policy


def update_twice(config: PreTrainedConfig, budget: int, length: int, reduce_every: str) -> None:
    """Two optimizer steps of two full micro-batches each, after the model is built: until then it is whole."""
    policy = sharded_policy(config)
    policy.reduce_every = reduce_every
    release_freed()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    adamw = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    num = budget // length
    credits_N = np.ones(num * (length - 1), dtype=np.float32)
    rollouts = Rollouts.of([[0]] * num, [[0] * (length - 1)] * num, credits_N=credits_N)
    for _ in range(2):
        for is_last in (False, True):
            prepare_backward(policy, is_last=is_last)
            policy(policy.micro_batch(rollouts, np.full(num, 1e-3))).loss.backward()
        adamw.step()
        adamw.zero_grad()


def release_freed() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    path, budget, length, reduce_every = sys.argv[1:]
    values = json.loads(Path(path).read_text())
    dist.init_process_group("gloo")
    update_twice(AutoConfig.for_model(**values | {"intermediate_size": 64, "vocab_size": 64}), 64, 16, reduce_every)
    release_freed()
    before = resident_bytes("VmRSS")
    update_twice(AutoConfig.for_model(**values), int(budget), int(length), reduce_every)
    if dist.get_rank() == 0:
        print(resident_bytes("VmHWM") - before)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
