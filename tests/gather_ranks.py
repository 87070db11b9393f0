"""One of two processes of tests/test_gathered_weights.py: FSDP2 shards, one vLLM engine a process, gloo.

torchrun --nproc-per-node 2 tests/gather_ranks.py MODEL_FOLDER
"""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM

from fastrl.rollouts import Rollouts
from fastrl.sampling.protocol import SamplingSettings, StaleWeightsError, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.choose import share_weights


def sharded_model(folder: str) -> torch.nn.Module:
    """float32 shards, bfloat16 in the forward: what vLLM serves."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def logprobs(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The trainer's log-probs of a completion, through the sharded forward."""
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def all_logprobs(model: torch.nn.Module, rollouts: Rollouts) -> list[torch.Tensor]:
    indices = range(len(rollouts))
    return [logprobs(model, rollouts.prompt(i).tolist(), rollouts.completion(i).tolist()) for i in indices]


def mean_gap(model: torch.nn.Module, rollouts: Rollouts) -> float:
    with torch.no_grad():
        ours = all_logprobs(model, rollouts)
    return (torch.cat(ours) - torch.from_numpy(rollouts.sampler_logprobs_N)).abs().mean().item()


def update(model: torch.nn.Module, rollouts: Rollouts) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        sum(-row.mean() for row in all_logprobs(model, rollouts)).backward()
        optimizer.step()
        optimizer.zero_grad()


def stale(sampler: VllmSampler, version: int) -> str:
    try:
        sampler.prove_fresh(version)
    except StaleWeightsError as error:
        return str(error)
    raise AssertionError("stale weights were not noticed")


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = sharded_model(folder)
    engine = Engine(EngineSettings(folder, torch.bfloat16, 640, 16, 16 << 20))
    said: list[str] = []
    sampler = VllmSampler(engine, share_weights("auto", engine, model, said.append), stop_token_ids=[1])
    assert said == ["sampler weights: gather, shards of 2 processes go straight into vLLM's tensors"], said
    addresses = [s.parameter.data_ptr() for s in engine.slots()]
    settings = SamplingSettings(num_samples=4, max_new_tokens=8)
    rollouts = sample(sampler, [[5, 6, 7], [9] * 6], settings, [10 + rank, 20 + rank])
    fresh = mean_gap(model, rollouts)
    update(model, rollouts)
    assert "an update was not published" in stale(sampler, 1)
    sampler.weights.version = 1  # a stamp without a gather
    assert "a gather was skipped or wrote elsewhere" in stale(sampler, 1)
    outdated = mean_gap(model, rollouts)
    received = sampler.publish(1)
    sampler.prove_fresh(1)
    after = mean_gap(model, sample(sampler, [[5, 6, 7], [9] * 6], settings, [30 + rank, 40 + rank]))
    assert fresh < 0.02 and after < 0.02 and outdated > 0.2, (fresh, after, outdated)
    assert addresses == [s.parameter.data_ptr() for s in engine.slots()]
    total = sum(b - a for s in engine.slots() for a, b in s.rows.values())
    assert total and 0 < received < sum(s.parameter.nbytes for s in engine.slots())
    with torch.no_grad():
        broken = next(s for s in engine.slots() if s.name.endswith("0.mlp.down_proj.weight"))
        if rank == 1:
            broken.parameter[0, 0] += 1
    if rank == 1:
        message = stale(sampler, 1)
        assert "down_proj.weight: the rows that vLLM serves for process 0" in message, message
    else:
        sampler.prove_fresh(1)
    dist.barrier()
    sampler.close()
    print(f"rank {rank}: all good, tokens {rollouts.completion(0).tolist()}\n", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
