"""Our side of a whole iteration: an open run whose steps are taken one by one, records and verification included."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import torch
from gpu_train import LOW_MEMORY
from iteration_work import NUM_SAMPLES, Work, lengths_of

from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.prompts.stops import NO_STOPS
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.run.preflight import check_everything
from fastrl.run.training import Run
from fastrl.sampling import vllm_engine
from fastrl.sampling.embedded import EmbeddedSampler

GIB = 1 << 30
PHASES = ("freshness", "generate", "verify", "exchange", "signal", "score", "train", "publish")


def make_config(work: Work, folder: Path) -> TrainConfig:
    reduction = "token-mean-kept" if work.objective in ("psr", "nsr") else "token-mean-all"
    return TrainConfig(
        model=ModelConfig(
            str(folder / "model"), dtype=work.dtype, device=work.device, gradient_checkpointing=work.recompute
        ),
        task=TaskConfig(
            "iteration_reward:reward", str(Path(__file__).parent), train=str(folder / "rows.jsonl"), num_workers=4
        ),
        algorithm=AlgorithmConfig(objective=work.objective, reduction=reduction, truncated="judged"),
        batch=BatchConfig(work.prompts, NUM_SAMPLES, work.micro_batch * work.length),
        sampler=SamplerConfig(
            kind=work.sampler,
            weights=work.weights,
            max_new_tokens=work.completion,
            kv_cache_bytes=int(work.kv_gib * GIB),
            kv_cache_dtype=work.kv_cache_dtype,
            batch_size=work.num_rollouts,
        ),
        optimizer=OptimizerConfig(lr=1e-6, **(LOW_MEMORY if work.low_memory else {})),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(str(folder / "run"), num_steps=work.iterations, checkpoint_every=10**6),
    )


@contextmanager
def forced_lengths(lengths: list[int]) -> Iterator[None]:
    """Completions have these lengths, whatever is sampled: vLLM's by max_tokens, the embedded sampler's by cutting.

    So the embedded sampler takes the time of the longest for all.
    """
    parameters, generate = vllm_engine._parameters, EmbeddedSampler.generate

    waiting = cycle(lengths)

    def bounded(request: object, settings: object, stops: object) -> object:
        found = parameters(request, settings, NO_STOPS)
        found.max_tokens = next(waiting)
        return found

    def cut(self: EmbeddedSampler, *arguments: object) -> Iterator[Rollouts]:
        self.stop_token_ids = []
        for part in generate(self, *arguments):
            yield cut_to(part, lengths)

    vllm_engine._parameters, EmbeddedSampler.generate = bounded, cut
    try:
        yield
    finally:
        vllm_engine._parameters, EmbeddedSampler.generate = parameters, generate


def cut_to(part: Rollouts, lengths: Sequence[int]) -> Rollouts:
    """The beginnings of completions; a group's samples come in order."""
    seen: dict[int, int] = {}
    kept = []
    for group in part.groups_R.tolist():
        kept.append(lengths[group * NUM_SAMPLES + seen.setdefault(group, 0)])
        seen[group] += 1
    everything = list(enumerate(kept))
    return Rollouts.of(
        [part.prompt(i) for i, _ in everything],
        [part.completion(i)[:n] for i, n in everything],
        sampler_logprobs=[part.of_rollout(i, part.sampler_logprobs_N)[:n] for i, n in everything],
        is_truncated=[True] * len(part),
        groups=part.groups_R,
    )


def measure(work: Work, folder: Path) -> dict:
    """Seconds of every iteration by phase, and what else the run says of it."""
    config, walls = make_config(work, folder), []
    with forced_lengths(lengths_of(work)), Run(check_everything(config, is_resumed=False), resume=False) as run:
        for step in range(1, work.iterations + 1):
            if work.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run._step(step)
            walls.append(time.perf_counter() - start)
        calibration = run.parts.trainer.probe.calibration
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    iterations = [{name: row.get(f"time/{name}_s", 0.0) for name in PHASES} for row in rows]
    for phases, wall in zip(iterations, walls, strict=True):
        phases["rest"] = wall - sum(phases.values())
    last = rows[-1]
    found = {"iterations": iterations, "noise": vars(calibration), "importance": run.parts.updater.importance_mode}
    found |= {name: last[name] for name in ("reward/mean", "update/kept_share", "publish/bytes", "mismatch/mean_abs")}
    if work.device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return found
