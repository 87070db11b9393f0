"""Run as a script: peak resident bytes of a few updates of a random model on CPU, beyond what imports took. Linux only.

python tests/measure_training_peak.py \\
    CONFIG.json DTYPE TOKEN_BUDGET SEQUENCE_TOKENS IS_CHECKPOINTED KIND GRAD_DTYPE LORA_RANK
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from fastrl.config.schema import ModelConfig, OptimizerConfig
from fastrl.policy.attention import choose_attention
from fastrl.policy.lora import attach
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.rms_norm import keep_norm_inputs
from fastrl.policy.soundness import pack
from fastrl.policy.vocabulary import head_gradient, sparse_embedding
from fastrl.rollouts import Rollouts


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the highest since the last reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def update_twice(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    budget: int,
    length: int,
    is_checkpointed: bool,
    settings: OptimizerConfig,
    lora_rank: int,
) -> None:
    """Two optimizer steps of two full micro-batches each."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    keep_norm_inputs(model)
    choice = choose_attention("auto", model.device, dtype, config)
    assert pack(model, choice).is_packed
    if is_checkpointed:
        recompute_blocks(model)
    if lora_rank:
        attach(model, ModelConfig(lora_rank=lora_rank), None, seed=0)
    policy = Policy(model)
    optimizer = build_optimizer(policy, settings, 2)
    vocab = config.vocab_size
    rows = [[(7 * i + 13 * t) % vocab for t in range(length + 1)] for i in range(2 * (budget // length))]
    credits_N = np.ones(len(rows) * length, dtype=np.float32)
    rollouts = Rollouts.of([r[:1] for r in rows], [r[1:] for r in rows], credits_N=credits_N)
    for _ in range(2):
        for part in policy.cut(rollouts, budget):
            batch = policy.micro_batch(rollouts.take(part), np.full(len(part), 1e-3))
            with sparse_embedding(policy):
                result = policy(batch, grad_weight=head_gradient(policy))
            result.loss.backward()
            del result
        optimizer.step()


def main() -> None:
    path, dtype, budget, length, is_checkpointed, kind, grad_dtype, lora_rank = sys.argv[1:]
    values = json.loads(Path(path).read_text())
    dtype, is_checkpointed, lora_rank = getattr(torch, dtype), is_checkpointed == "True", int(lora_rank)
    settings = OptimizerConfig(kind=kind, grad_dtype=grad_dtype)
    # libraries load, pools start, and the kinds that compile their step do so for the shapes to come
    small = values | ({"intermediate_size": 64, "vocab_size": 64} if kind == "adamw" else {"num_hidden_layers": 1})
    update_twice(AutoConfig.for_model(**small), dtype, 64, 16, is_checkpointed, settings, lora_rank)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    update_twice(
        AutoConfig.for_model(**values), dtype, int(budget), int(length), is_checkpointed, settings, int(lora_rank)
    )
    print(resident_bytes("VmHWM") - before)


if __name__ == "__main__":
    main()
