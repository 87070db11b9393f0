"""Training alone on one GPU: tokens/s, share of the peak (MFU), peak memory by part. Random weights at true shapes.

    python bench/gpu_train.py --out DIR [--minutes 8.5]     runs what DIR/gpu_train.jsonl has not got; again to go on
    python bench/gpu_train.py --out DIR --dry-run           tiny shapes on a CPU, the same code

Every run is a process of its own and one line of the file; a run that fails (out of memory) is a line that says how.
Fixed lengths: prompts of 256 tokens, completions of 768, all with advantage ±½; two updates warm up, five are timed.
start: seconds until the blocks are prepared and the first update is done. MFU counts what has to be computed, so
neither recomputed blocks nor prompts' logits (`fastrl.plan.flops`).

TRL: fp32 weights under bfloat16 autocast, the same precision as our fp32 masters, and the same completions; its head is
part of the measurement in both. Where gradient checkpointing is on, it is on for both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from machine import machine
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from fastrl.config.schema import AlgorithmConfig, BatchConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.plan.cards import card_of
from fastrl.plan.flops import ModelShape, Sequences, training_flops
from fastrl.policy.attention import choose_attention
from fastrl.policy.compiled import compile_blocks
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.rms_norm import keep_norm_inputs
from fastrl.policy.soundness import pack
from fastrl.rollouts import Rollouts
from fastrl.update import Updater, token_loss

QWEN3 = {"vocab_size": 151936, "num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128}
SHAPES = {
    "qwen3-0.6b": Qwen3Config(
        **QWEN3, hidden_size=1024, intermediate_size=3072, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-1.7b": Qwen3Config(
        **QWEN3, hidden_size=2048, intermediate_size=6144, num_attention_heads=16, tie_word_embeddings=True
    ),
    "qwen3-4b": Qwen3Config(
        **QWEN3 | {"num_hidden_layers": 36},
        hidden_size=2560,
        intermediate_size=9728,
        num_attention_heads=32,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "tiny": Qwen3Config(
        vocab_size=517,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    ),
}
LOW_MEMORY = {"kind": "adamw-8bit", "grad_dtype": "bfloat16"}
NUM_WARM, NUM_TIMED = 2, 5


@dataclass(frozen=True)
class Work:
    """One measurement. sequences: of an update; micro_batch: sequences computed at once. backbone: our blocks as they
    are, compiled, or with Liger's modules; TRL's as they are or with Liger."""

    shape: str
    who: str
    sequences: int = 64
    micro_batch: int = 16
    prompt: int = 256
    completion: int = 768
    recompute: bool = False
    optimizer: dict = field(default_factory=dict)
    backbone: str = "eager"

    @property
    def name(self) -> str:
        options = ["recompute"] * self.recompute + list(self.optimizer.values())
        return " ".join([self.shape, self.who, *[self.backbone] * (self.backbone != "eager"), *options])


COMPILED = {"backbone": "compiled"}
WORKS = [
    Work("qwen3-0.6b", "fastrl", **COMPILED),
    Work("qwen3-0.6b", "fastrl"),
    Work("qwen3-0.6b", "trl", micro_batch=8),
    Work("qwen3-0.6b", "fastrl", backbone="liger"),
    Work("qwen3-1.7b", "fastrl", micro_batch=8, **COMPILED),
    Work("qwen3-1.7b", "trl", micro_batch=8),
    Work("qwen3-4b", "fastrl", micro_batch=4, optimizer=LOW_MEMORY, **COMPILED),
    Work("qwen3-4b", "trl", micro_batch=4, recompute=True),
    Work("qwen2.5-7b", "fastrl", micro_batch=4, recompute=True, optimizer=LOW_MEMORY, **COMPILED),
    Work("qwen2.5-7b", "trl", micro_batch=4, recompute=True),
    Work("qwen3-0.6b", "fastrl", recompute=True, **COMPILED),
    Work("qwen3-1.7b", "fastrl", recompute=True, **COMPILED),
]
DRY_WORKS = [
    Work("tiny", "fastrl", 8, 4, 16, 24),
    Work("tiny", "fastrl", 8, 4, 16, 24, recompute=True, **COMPILED),
    Work("tiny", "trl", 8, 4, 16, 24),
    Work("tiny", "fastrl", 8, 4, 16, 24, recompute=True),
    Work("tiny", "fastrl", 8, 4, 16, 24, optimizer={"no_such_setting": "fails"}),
]


def make_rollouts(work: Work) -> Rollouts:
    """Random tokens; groups of 8 with rewards and advantages that alternate in sign."""
    generator = torch.Generator().manual_seed(0)
    size = (work.sequences, work.prompt + work.completion)
    rows = torch.randint(5, SHAPES[work.shape].vocab_size, size, generator=generator).tolist()
    prompts, completions = [ids[: work.prompt] for ids in rows], [ids[work.prompt :] for ids in rows]
    indices_R = np.arange(len(rows))
    rewards_R = (indices_R % 2).astype(np.float64)
    columns = {"is_truncated": [True] * len(rows), "groups": indices_R // 8, "rewards_R": rewards_R}
    rollouts = Rollouts.of(prompts, completions, **columns)
    return replace(rollouts, credits_N=rollouts.by_token(rewards_R - 0.5))  # what TRL makes of these rewards


def make_config(work: Work) -> TrainConfig:
    return TrainConfig(
        algorithm=AlgorithmConfig(objective="dr-grpo", reduction="token-mean-all"),
        batch=BatchConfig(work.sequences // 8, 8, work.micro_batch * (work.prompt + work.completion)),
        sampler=SamplerConfig(max_new_tokens=work.completion),
        optimizer=OptimizerConfig(lr=1e-6, **work.optimizer),
    )


def make_model(work: Work, device: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(SHAPES[work.shape], dtype=dtype).eval()


def flops(model: PreTrainedModel, work: Work) -> float:
    """Of one update."""
    sequences = Sequences(work.sequences, work.sequences, work.prompt, work.completion)
    return training_flops(ModelShape.of(model), sequences)


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def use_liger(model: PreTrainedModel) -> None:
    """Its norms, rotary embedding and feed-forward; the loss stays ours."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def compile_all(model: PreTrainedModel) -> None:
    keep_norm_inputs(model)
    compile_blocks(model, is_required=True)


BACKBONES = {"eager": keep_norm_inputs, "compiled": compile_all, "liger": use_liger}


def run_ours(work: Work, device: str) -> dict:
    config, rollouts = make_config(work), make_rollouts(work)
    model = make_model(work, device, torch.bfloat16 if device == "cuda" else torch.float32)
    choice = pack(model, choose_attention("auto", model.device, model.dtype, model.config))
    start = time.perf_counter()
    BACKBONES[work.backbone](model)
    if work.recompute:
        recompute_blocks(model)
    memory = {"weights": allocated(device)}
    policy = Policy(model, token_loss(config.algorithm))
    optimizer = build_optimizer(policy, config.optimizer, 10)
    memory["masters"] = allocated(device) - sum(memory.values())
    updater, seconds = Updater(policy, optimizer, config), []
    for _ in range(NUM_WARM + NUM_TIMED):
        before = time.perf_counter()
        updater.run(rollouts)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    memory["optimizer states"] = allocated(device) - sum(memory.values())
    start_s = {"start_s": round(time.perf_counter() - start - sum(seconds[1:]), 2)}
    return start_s | {"attention": str(choice), "memory": memory, "flops": flops(model, work), "seconds": seconds}


def run_trl(work: Work, device: str) -> dict:
    from bench_trl import Case, big_tokenizer, small_tokenizer
    from trl_peer import Peer, Settings

    model = make_model(work, device, torch.float32)
    memory = {"weights": allocated(device)}
    case = Case(work.shape, work.sequences // 8, 0, 0, 0, updates=1, max_new_tokens=work.completion)
    parts, is_liger = work.sequences // work.micro_batch, work.backbone == "liger"
    settings = Settings(parts, bf16=device == "cuda", recompute=work.recompute, liger=is_liger)
    tokenizer = big_tokenizer(small_tokenizer(), model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(case, make_config(work), settings, Path(folder), model, tokenizer)
        seconds = peer.train_seconds(make_rollouts(work), NUM_WARM + NUM_TIMED)
    return {"settings": settings.name, "memory": memory, "flops": flops(model, work), "seconds": seconds}


def measure(work: Work, device: str) -> dict:
    """The line of one run."""
    found = {"fastrl": run_ours, "trl": run_trl}[work.who](work, device)
    timed = found.pop("seconds")[NUM_WARM:]
    seconds, rate = statistics.median(timed), found.pop("flops")
    found["update_s"] = [round(s, 4) for s in timed]
    found["tokens_per_s"] = round(work.sequences * (work.prompt + work.completion) / seconds)
    if device == "cuda":
        card = card_of(torch.cuda.get_device_name())
        found["mfu"] = round(rate / seconds / card.flops_per_s, 4) if card else None
        found["memory"] |= {"peak": torch.cuda.max_memory_allocated()}
        found["memory"] = {name: round(size / 2**30, 2) for name, size in found["memory"].items()}
    return found


def one(work: Work, device: str) -> dict:
    """`measure`, or how it failed: a peer or a size that does not fit is a result."""
    line = {"name": work.name, "machine": machine()} | asdict(work)
    try:
        return line | measure(work, device)
    except (RuntimeError, ValueError, TypeError, ImportError) as error:  # torch's out of memory is a RuntimeError
        return line | {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:300]}


def run_all(works: list[Work], out: Path, minutes: float, is_dry: bool) -> None:
    """Each missing run in a process of its own, until the time is up."""
    path, end = out / ("gpu_train_dry.jsonl" if is_dry else "gpu_train.jsonl"), time.monotonic() + 60 * minutes
    done = {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.exists() else set()
    for index, work in enumerate(works):
        left_s = end - time.monotonic()
        if work.name in done:
            continue
        if left_s < 30:
            print(f"out of time before {work.name}: start again to go on")
            return
        command = [sys.executable, __file__, "--out", str(out), "--one", str(index), *["--dry-run"] * is_dry]
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left_s)
        except subprocess.TimeoutExpired:
            print(f"out of time during {work.name}: start again to go on")
            return
        last = result.stdout.strip().rpartition("\n")[2]
        if result.returncode:
            died = {"failed": f"the process ended with status {result.returncode}"}
            last = json.dumps({"name": work.name, "machine": machine()} | asdict(work) | died)
        print(last, flush=True)
        with path.open("a") as file:
            file.write(last + "\n")
    path.with_suffix(".md").write_text(markdown([json.loads(line) for line in path.read_text().splitlines()]))


def markdown(lines: list[dict]) -> str:
    rows = ["# Training on one GPU", "", lines[0]["machine"], "", "    bench/gpu_train.sh", ""]
    rows += ["| run | tokens/s | MFU | start, s | peak GiB | by part, GiB | note |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        memory = dict(line.get("memory", {}))
        peak = memory.pop("peak", "")
        parts = ", ".join(f"{name} {size}" for name, size in memory.items()) if peak else ""
        note = line.get("failed") or line.get("settings") or line.get("attention")
        rate = f"{line.get('tokens_per_s', '')} | {line.get('mfu') or ''} | {line.get('start_s', '')}"
        rows.append(f"| {line['name']} | {rate} | {peak} | {parts} | {note} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--one", type=int, help="only this run, in this process: prints its line")
    options = parser.parse_args()
    works = DRY_WORKS if options.dry_run else WORKS
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: --dry-run takes tiny shapes through the same code")
    if options.one is not None:
        print(json.dumps(one(works[options.one], "cpu" if options.dry_run else "cuda")))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    run_all(works, options.out, options.minutes, options.dry_run)


if __name__ == "__main__":
    main()
