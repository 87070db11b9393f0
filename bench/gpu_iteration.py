"""Whole iterations on one GPU: generate, score, update, publish, prove. Random weights at true shapes.

    python bench/gpu_iteration.py --out DIR --shape qwen3-0.6b                   one line of DIR/gpu_iteration.jsonl
    python bench/gpu_iteration.py --out DIR --dry-run [--sampler embedded]       a tiny shape on a CPU, the same code

Fixed lengths: nothing stops a completion. NSR with every second rollout wrong, so half of them carry gradient. Each
phase ends with a synchronisation. The first iteration compiles kernels; the others are medians. At the end one
micro-batch's forward and backward go through PyTorch's profiler (DIR/gpu_iteration_profile.txt).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from gpu_train import LOW_MEMORY, SHAPES
from machine import machine
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from fastrl.config.schema import AlgorithmConfig, BatchConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.policy.attention import choose_attention
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.scoring import score
from fastrl.policy.soundness import pack
from fastrl.rollouts import Rollouts
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.probe import measure
from fastrl.sampling.protocol import Sampler, SamplingSettings, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.choose import share_weights
from fastrl.update import Updater, token_loss

NUM_SAMPLES, NUM_SCORED = 8, 64
GIB = 1 << 30


@dataclass(frozen=True)
class Work:
    """prompt and completion in tokens; micro_batch in sequences; kv_gib: of vLLM's cache."""

    shape: str = "qwen3-0.6b"
    sampler: str = "vllm"
    mode: str = "alias"
    prompts: int = 32
    prompt: int = 256
    completion: int = 768
    micro_batch: int = 16
    kv_gib: float = 32.0
    iterations: int = 3
    recompute: bool = False
    low_memory: bool = False
    dry_run: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry_run and not self.low_memory else torch.bfloat16

    @property
    def length(self) -> int:
        return self.prompt + self.completion


TINY = {"shape": "tiny", "prompts": 4, "prompt": 16, "completion": 24, "micro_batch": 4, "kv_gib": 1 / 32}


@dataclass
class Parts:
    """What an iteration works with."""

    policy: Policy
    sampler: Sampler
    updater: Updater
    said: dict[str, str]


def make_config(work: Work) -> TrainConfig:
    return TrainConfig(
        algorithm=AlgorithmConfig(objective="nsr", reduction="token-mean-kept"),
        batch=BatchConfig(work.prompts, NUM_SAMPLES, work.micro_batch * work.length),
        sampler=SamplerConfig(max_new_tokens=work.completion),
        optimizer=OptimizerConfig(lr=1e-6, **(LOW_MEMORY if work.low_memory else {})),
    )


def build(work: Work, folder: str) -> Parts:
    """In the order of a run: model, sampler, optimizer."""
    torch.manual_seed(0)
    with torch.device(work.device):
        AutoModelForCausalLM.from_config(SHAPES[work.shape], dtype=work.dtype).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=work.dtype).to(work.device).eval()
    said = {"attention": str(pack(model, choose_attention("auto", model.device, model.dtype, model.config)))}
    if work.recompute:
        recompute_blocks(model)
    config = make_config(work)
    policy = Policy(model, token_loss(config.algorithm))
    start = time.perf_counter()
    if work.sampler == "embedded":
        sampler = EmbeddedSampler(model, stop_token_ids=[], pad_token_id=0, batch_size=work.prompts * NUM_SAMPLES)
    else:
        num_sequences, kv_bytes = work.prompts * NUM_SAMPLES, int(work.kv_gib * GIB)
        engine = Engine(EngineSettings(folder, work.dtype, work.length + 8, num_sequences, kv_bytes))
        weights = share_weights(work.mode, engine, model, lambda text: said.update(weights=text))
        sampler = VllmSampler(engine, weights, stop_token_ids=[])
    said["sampler_s"] = f"{time.perf_counter() - start:.1f}"
    return Parts(policy, sampler, Updater(policy, build_optimizer(policy, config.optimizer, 10), config), said)


def timed(work: Work, seconds: dict[str, float], phase: str, run: Callable) -> object:
    start = time.perf_counter()
    result = run()
    if work.device == "cuda":
        torch.cuda.synchronize()
    seconds[phase] = time.perf_counter() - start
    return result


def prompts_of(work: Work) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    size = (work.prompts, work.prompt)
    return torch.randint(5, SHAPES[work.shape].vocab_size, size, generator=generator).tolist()


def iterate(work: Work, parts: Parts, number: int) -> tuple[dict, Rollouts]:
    """Seconds of each phase, and what else an iteration says."""
    seconds: dict[str, float] = {}
    settings = SamplingSettings(num_samples=NUM_SAMPLES, max_new_tokens=work.completion)
    seeds = [1000 * number + i for i in range(work.prompts)]
    prompts, budget = prompts_of(work), work.micro_batch * work.length
    rollouts = timed(work, seconds, "generate", lambda: sample(parts.sampler, prompts, settings, seeds))
    credits_R = -(np.arange(len(rollouts), dtype=np.float32) % 2 == 0).astype(np.float32)
    rollouts = replace(rollouts, credits_N=rollouts.by_token(credits_R))
    scored = rollouts.take(np.arange(0, len(rollouts), max(1, len(rollouts) // NUM_SCORED)))
    logprobs_N, _ = timed(work, seconds, "score", lambda: score(parts.policy, scored, budget))
    scored = replace(scored, policy_logprobs_N=logprobs_N)
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    metrics = timed(work, seconds, "update", lambda: parts.updater.run(rollouts))
    found = {"seconds": seconds, "noise": vars(measure(scored)), "num_scored": len(scored)}
    if work.device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    found["num_kept"] = metrics["update/num_kept"]
    found["bytes"] = timed(work, seconds, "publish", lambda: parts.sampler.publish(number))
    timed(work, seconds, "prove", lambda: parts.sampler.prove_fresh(number))
    return found, rollouts


def profile_micro_batch(work: Work, parts: Parts, rollouts: Rollouts) -> str:
    """Where the time of one micro-batch goes; a whole update takes the profiler half a minute to print."""
    kept = rollouts.take(rollouts.has_gradient_R)
    indices = parts.policy.cut(kept, work.micro_batch * work.length)[0]
    batch = parts.policy.micro_batch(kept.take(indices), np.full(len(indices), 1e-4))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if work.device == "cuda" else [])]
    with profile(activities=activities) as found:
        parts.policy(batch).loss.backward()
        if work.device == "cuda":
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if work.device == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70)


def run(work: Work, folder: str) -> tuple[dict, str]:
    """(the line, the profile)."""
    parts = build(work, folder)
    found = []
    for number in range(1, work.iterations + 1):
        entry, rollouts = iterate(work, parts, number)
        print(f"iteration {number}: {json.dumps(entry)}", flush=True)
        found.append(entry)
    table = profile_micro_batch(work, parts, rollouts)
    parts.sampler.close()
    later = found[1:] or found
    seconds = {phase: statistics.median(e["seconds"][phase] for e in later) for phase in later[0]["seconds"]}
    num_rollouts = work.prompts * NUM_SAMPLES
    line = {"machine": machine()} | asdict(work) | parts.said
    line["seconds"] = {phase: round(s, 6) for phase, s in seconds.items()}
    line["iteration_s"] = round(sum(seconds.values()), 3)
    line["generated_per_s"] = round(num_rollouts * work.completion / seconds["generate"])
    line["updated_per_s"] = round(found[-1]["num_kept"] * work.length / seconds["update"])
    return line | {name: value for name, value in found[-1].items() if name != "seconds"}, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    choices = {"shape": SHAPES, "sampler": ("vllm", "embedded"), "mode": ("alias", "copy")}
    for name, value in asdict(Work()).items():
        flag = f"--{name.replace('_', '-')}"
        if name != "dry_run" and isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        elif name != "dry_run":
            parser.add_argument(flag, type=type(value), choices=choices.get(name))
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out = given.pop("out")
    work = Work(**((TINY if given["dry_run"] else {}) | given))
    if not work.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: --dry-run takes a tiny shape through the same code")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        line, table = run(work, folder)
    stem = "gpu_iteration_dry" if work.dry_run else "gpu_iteration"
    (out / f"{stem}_profile.txt").write_text(table + "\n")
    with (out / f"{stem}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
