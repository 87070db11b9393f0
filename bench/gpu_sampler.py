"""One GPU, one vLLM, one set of weights: the proof, and what it costs. Random weights at true shapes.

    python bench/gpu_sampler.py --shape qwen3-0.6b --mode alias      one JSON line
    python bench/gpu_sampler.py --shape tiny --device cpu            the same code without a GPU, in a minute

CUDA graphs are on (on CPU there are none). Twenty optimizer steps at a learning rate that moves log-probs far beyond
rounding; after each one publish and prove; at the end the log-prob probe must still be within the noise of before.
`stale_mean` says what it would have seen had the sampler kept its old weights.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from machine import machine
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollouts
from fastrl.sampling.probe import LogprobProbe, measure
from fastrl.sampling.protocol import SamplingSettings, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.choose import share_weights

SHAPES = {
    "tiny": {"vocab_size": 517, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32},
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128},
    "qwen3-1.7b": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "head_dim": 128},
}
HEADS = {
    "tiny": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3-0.6b": {"vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 8},
    "qwen3-1.7b": {"vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 8},
}
NUM_UPDATES, TOKEN_BUDGET = 20, 8192


def make_model(shape: str, folder: str) -> None:
    """Random bfloat16 weights in a Hugging Face folder."""
    config = Qwen3Config(**SHAPES[shape], **HEADS[shape], tie_word_embeddings=True, max_position_embeddings=2048)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)


def prompts_of(num_prompts: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, vocab_size, (num_prompts, 64), generator=generator).tolist()


def scored(model: PreTrainedModel, rollouts: Rollouts) -> Rollouts:
    """The rollouts with the trainer's log-probs attached."""
    logprobs_N, _ = score(Policy(model), rollouts, TOKEN_BUDGET)
    return replace(rollouts, policy_logprobs_N=logprobs_N)


def update(policy: Policy, optimizer: Optimizer, rollouts: Rollouts) -> None:
    """One optimizer step: even completions up, odd ones down."""
    signs_R = np.where(np.arange(len(rollouts)) % 2, 1.0, -1.0)
    rollouts = replace(rollouts, credits_N=rollouts.by_token(signs_R))
    weights_R = np.full(len(rollouts), 1 / rollouts.num_tokens)
    for indices in policy.cut(rollouts, TOKEN_BUDGET):
        policy(policy.micro_batch(rollouts.take(indices), weights_R[indices])).loss.backward()
    optimizer.step()


def weight_sets(model: PreTrainedModel, engine: Engine) -> float:
    """Bytes of all distinct storages that hold weights on either side, over the bytes of one set."""
    tensors = [*model.parameters(), *(s.parameter for s in engine.slots())]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values()) / sum(s.parameter.nbytes for s in engine.slots())


def timed_ms(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def tokens_per_s(sampler: VllmSampler, num_sequences: int, num_tokens: int) -> float:
    """Throughput of sequences of forced length (there are no stop tokens), after a warm-up."""
    settings = SamplingSettings(num_samples=8, max_new_tokens=num_tokens)
    prompts = prompts_of(num_sequences // 8, 500)
    sample(sampler, prompts, settings, range(len(prompts)))
    start = time.perf_counter()
    rollouts = sample(sampler, prompts, settings, range(len(prompts)))
    return rollouts.num_tokens / (time.perf_counter() - start)


def run(shape: str, mode: str, device: str, folder: str) -> dict:
    """All numbers of one shape and mode. Raises when a proof or the probe fails."""
    make_model(shape, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    is_small = device == "cpu"
    settings = EngineSettings(folder, torch.bfloat16, 1024, 256, (32 << 20) if is_small else (16 << 30))
    start = time.perf_counter()
    engine = Engine(settings)
    said: list[str] = []
    sampler = VllmSampler(engine, share_weights(mode, engine, model, said.append), stop_token_ids=[])
    result = {"shape": shape, "mode": mode, "machine": machine(), "said": said, "dtype": "bfloat16"}
    result["engine_s"] = round(time.perf_counter() - start, 1)
    result["num_parameters"] = sum(p.numel() for p in model.parameters())
    result["weight_sets"] = round(weight_sets(model, engine), 4)
    policy = Policy(model)
    optimizer = build_optimizer(policy, OptimizerConfig(lr=1e-4), NUM_UPDATES)
    probe = LogprobProbe(torch.bfloat16)
    prompts = prompts_of(8, model.config.vocab_size)
    rollout_settings = SamplingSettings(num_samples=4, max_new_tokens=16 if is_small else 128)
    first = sample(sampler, prompts, rollout_settings, range(8))
    probe.check(scored(model, first))
    publish_ms, prove_ms = [], []
    for version in range(1, NUM_UPDATES + 1):
        update(policy, optimizer, first)
        publish_ms.append(timed_ms(lambda v=version: sampler.publish(v), device))
        prove_ms.append(timed_ms(lambda v=version: sampler.prove_fresh(v), device))
    last = scored(model, sample(sampler, prompts, rollout_settings, range(8)))
    probe.check(last)
    result |= {"probe_before": vars(probe.calibration), "probe_after": vars(measure(last))}
    result["stale_mean"] = measure(scored(model, first)).mean
    result["publish_ms"] = round(statistics.median(publish_ms), 4)
    result["publish_bytes"] = sampler.publish(NUM_UPDATES)
    result["prove_fresh_ms"] = round(statistics.median(prove_ms), 3)
    result["tokens_per_s"] = round(tokens_per_s(sampler, 16 if is_small else 256, 16 if is_small else 512))
    if device == "cuda":
        result["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    sampler.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--mode", choices=("alias", "copy"), default="alias")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        line = json.dumps(run(arguments.shape, arguments.mode, arguments.device, folder))
    print(line)
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
