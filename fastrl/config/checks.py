"""What a config may say: ranges of single values, and values that cannot work together. Nothing is loaded for it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from fastrl.config.files import nearest
from fastrl.config.schema import (
    AlgorithmConfig,
    EvalConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
    WarmupConfig,
)
from fastrl.statistics import ks_up_to

INF = math.inf

# (least, most) allowed values of every number, by section and key ("": of no section), all of which must be finite; a
# bound in OPEN is itself excluded.
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "": {"micro_batch_tokens": (2, INF), "correct_threshold": (-INF, INF), "seed": (-INF, INF)},
    "model": {"lora_rank": (0, INF), "lora_alpha": (0, INF)},
    "task": {
        "seed": (-INF, INF),
        "max_prompt_tokens": (0, INF),
        "num_train": (0, INF),
        "num_validation": (0, INF),
        "num_test": (0, INF),
        "timeout_s": (0.01, INF),
        "memory_mb": (64, INF),
        "num_workers": (1, INF),
    },
    "sampler": {
        "temperature": (0, INF),
        "max_new_tokens": (1, INF),
        "batch_size": (1, INF),
        "top_p": (0, 1),
        "top_k": (0, INF),
        "kv_cache_bytes": (0, INF),
    },
    "algorithm": {
        "clip_low": (0, 1),
        "clip_high": (0, INF),
        "cispo_cap": (0, INF),
        "updates_per_batch": (1, INF),
        "kl_coef": (0, INF),
        "entropy_coef": (0, INF),
        "positive_weight": (0, INF),
        "correct_threshold": (-INF, INF),
        "dual_clip": (0, INF),
        "importance_cap": (1, INF),
        "overlong_buffer": (0, INF),
        "overlong_penalty": (0, INF),
        "dynamic_sampling_rounds": (0, INF),
    },
    "batch": {"prompts_per_step": (1, INF), "rollouts_per_prompt": (1, INF), "micro_batch_tokens": (2, INF)},
    "optimizer": {
        "lr": (0, INF),
        "warmup_steps": (0, INF),
        "beta1": (0, 1),
        "beta2": (0, 1),
        "eps": (0, INF),
        "weight_decay": (0, INF),
        "max_grad_norm": (0, INF),
    },
    "evaluation": {
        "seed": (-INF, INF),
        "every": (0, INF),
        "num_samples": (1, INF),
        "temperature": (0, INF),
        "top_p": (0, 1),
        "top_k": (0, INF),
        "repetition_penalty": (0, INF),
        "max_new_tokens": (0, INF),
    },
    "run": {
        "seed": (-INF, INF),
        "num_steps": (1, INF),
        "checkpoint_every": (1, INF),
        "keep_last": (1, INF),
        "scored_rollouts": (0, INF),
        "rollouts_mib": (0, INF),
        "max_nonfinite_steps": (0, INF),
        "watchdog_s": (0, INF),
    },
    "ledger": {
        "every": (0, INF),
        "num_prompts": (1, INF),
        "num_samples": (1, INF),
        "num_positions": (1, INF),
        "top_k": (1, INF),
    },
    "data": {"num_steps": (1, INF), "batch_size": (1, INF)},
    "scratch": {
        "hidden_size": (1, INF),
        "num_layers": (1, INF),
        "num_heads": (1, INF),
        "intermediate_size": (1, INF),
    },
}
OPEN = {
    ("model", "lora_alpha", 0),
    ("sampler", "temperature", 0),
    ("sampler", "top_p", 0),
    ("algorithm", "clip_low", 1),
    ("algorithm", "cispo_cap", 0),
    ("algorithm", "importance_cap", 1),
    ("optimizer", "beta1", 1),
    ("optimizer", "beta2", 1),
    ("optimizer", "eps", 0),
    ("evaluation", "top_p", 0),
    ("evaluation", "repetition_penalty", 0),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def numbers_of(config: Any, section: str = "") -> Iterator[tuple[str, str, float]]:
    """(section, key, value) of every number; section is empty for those of the config itself."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers_of(value, field.name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield section, field.name, value


def check_ranges(config: Any) -> None:
    """ValueError for a number that is not finite or outside RANGES: section.key, the value, what would be right."""
    for section, key, value in numbers_of(config):
        name = f"{section}.{key}" if section else key
        _require(math.isfinite(value), f"{name} must be finite, got {value}")
        least, most = RANGES[section][key]
        above = "above" if (section, key, least) in OPEN else "at least"
        below = "below" if (section, key, most) in OPEN else "at most"
        is_high_enough = value > least if above == "above" else value >= least
        is_low_enough = value < most if below == "below" else value <= most
        _require(is_high_enough, f"{name} must be {above} {least}, got {value}")
        _require(is_low_enough, f"{name} must be {below} {most}, got {value}")


def check_train(config: TrainConfig) -> TrainConfig:
    """The config with its preset applied. ValueError for values that cannot be, or cannot work together."""
    check_ranges(config)
    batch, algorithm, sampler = config.batch, config.algorithm, config.sampler
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(
        sampler.top_p == 1 and sampler.top_k == 0,
        f"training samples by temperature only: top_p={sampler.top_p}, top_k={sampler.top_k} would make the sampler's "
        "distribution another one than the loss's; set them under [evaluation]",
    )
    _require(
        batch.micro_batch_tokens > sampler.max_new_tokens,
        f"batch.micro_batch_tokens={batch.micro_batch_tokens} cannot hold one prompt and a completion of "
        f"sampler.max_new_tokens={sampler.max_new_tokens}",
    )
    _require(
        algorithm.updates_per_batch <= batch.prompts_per_step,
        f"algorithm.updates_per_batch={algorithm.updates_per_batch} exceeds batch.prompts_per_step="
        f"{batch.prompts_per_step}: a mini-batch holds whole groups",
    )
    _require(
        algorithm.dual_clip == 0 or algorithm.dual_clip > 1,
        f"algorithm.dual_clip must be above 1, or 0 for none, got {algorithm.dual_clip}",
    )
    _require(
        algorithm.overlong_buffer <= sampler.max_new_tokens,
        f"algorithm.overlong_buffer={algorithm.overlong_buffer} exceeds sampler.max_new_tokens="
        f"{sampler.max_new_tokens}: every completion would be penalised for its length",
    )
    _check_objective(algorithm, batch.rollouts_per_prompt)
    _check_gradients(config.optimizer)
    _check_best_metric(config.run.best_metric, config.evaluation)
    return dataclasses.replace(config, algorithm=_apply_preset(algorithm))


def _check_objective(algorithm: AlgorithmConfig, rollouts_per_prompt: int) -> None:
    has_baseline = algorithm.objective in ("rloo", "grpo", "dr-grpo")
    _require(
        rollouts_per_prompt > 1 or not has_baseline,
        f"objective {algorithm.objective} compares the rollouts of a prompt: batch.rollouts_per_prompt must be at "
        f"least 2, got {rollouts_per_prompt}",
    )
    _require(
        algorithm.overlong_buffer == 0 or has_baseline,
        f"algorithm.overlong_buffer={algorithm.overlong_buffer} shapes rewards that are compared within a group (rloo, "
        f"grpo, dr-grpo); objective {algorithm.objective} only asks whether a completion is correct",
    )


def check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """ValueError for what does not go with parameters that are sharded over num_ranks processes, or offloaded."""
    weights, kind = config.sampler.weights, config.optimizer.kind
    if num_ranks == 1 and not config.optimizer.offload:
        _require(weights != "gather", "sampler.weights = 'gather' is for several processes (torchrun); use 'auto'")
        return
    why = f"{num_ranks} ranks" if num_ranks > 1 else "optimizer.offload = true"
    _require(
        weights in ("auto", "gather"),
        f"{why}: the parameters are sharded, and sampler.weights must be 'auto' or 'gather', not '{weights}'",
    )
    _require(
        config.model.lora_rank == 0,
        f"{why}: adapters are not sharded so far; model.lora_rank must be 0, not {config.model.lora_rank}",
    )
    _require(
        config.ledger.every == 0,
        f"{why}: the ledger needs unsharded parameters so far; ledger.every must be 0, not {config.ledger.every}",
    )
    _require(kind == "adamw", f"{why}: float32 shards need optimizer.kind = 'adamw', not '{kind}'")
    _require(
        num_ranks == 1 or config.run.scored_rollouts >= 1,
        f"{why}: the pass that scores rollouts gives all ranks the same forwards before an update; run.scored_rollouts "
        f"must be at least 1, not {config.run.scored_rollouts}",
    )


def _check_gradients(optimizer: OptimizerConfig) -> None:
    _require(
        optimizer.kind != "adamw" or optimizer.grad_dtype == "float32",
        f"optimizer.grad_dtype = '{optimizer.grad_dtype}' needs a kind without masters (adamw-bf16, adamw-8bit): "
        "float32 masters take float32 gradients",
    )


def _check_best_metric(name: str, evaluation: EvaluationConfig) -> None:
    known = best_metric_names(evaluation.num_samples)
    _require(
        not evaluation.every or name in known,
        f"run.best_metric = '{name}' is not in an evaluation of {evaluation.num_samples} samples{nearest(name, known)}",
    )


def best_metric_names(num_samples: int) -> list[str]:
    """What run.best_metric may be: a point of a curve, or a scalar of the evaluation."""
    curves = [f"{curve}/{k}" for curve in ("pass_at_k", "maj_at_k") for k in ks_up_to(num_samples)]
    return [*curves, "mean_token_entropy", "distinct_answers", "distinct_correct_answers"]


PAPER_CODE = {
    "surrogate": "ppo_clip",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": 0.0,
    "reduction": "micro-batch-mean",
    "minibatch_cut": "after-dropping",
}


def _apply_preset(algorithm: AlgorithmConfig) -> AlgorithmConfig:
    """The preset's settings; ValueError where another value than the default was asked for beside it."""
    if algorithm.preset == "none":
        return algorithm
    for key, value in PAPER_CODE.items():
        asked = getattr(algorithm, key)
        _require(
            asked in (value, getattr(AlgorithmConfig(), key)),
            f"algorithm.preset = 'paper-code' means {key} = {value!r}, but algorithm.{key} = {asked!r} was asked for",
        )
    return dataclasses.replace(algorithm, **PAPER_CODE)


def check_eval(config: EvalConfig) -> None:
    """ValueError for an evaluation that cannot run."""
    check_ranges(config)
    _require(
        config.model.lora_rank == 0,
        f"an evaluation takes adapters from model.path: model.lora_rank must be 0, got {config.model.lora_rank}",
    )
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(
        config.output.endswith(".json"), f"output must end in .json (its plot lies beside it), got {config.output}"
    )


def check_warmup(config: WarmupConfig) -> None:
    """ValueError for a warm start that cannot run."""
    check_ranges(config)
    _check_gradients(config.optimizer)
    _require(
        config.model.lora_rank == 0,
        f"a warm start trains all parameters: model.lora_rank must be 0, got {config.model.lora_rank}",
    )
    _require(
        not config.optimizer.offload,
        "a warm start keeps all on its device: optimizer.offload must be false, got true",
    )
    _require(
        config.scratch.hidden_size % (2 * config.scratch.num_heads) == 0,
        f"scratch.hidden_size={config.scratch.hidden_size} must be an even multiple of "
        f"scratch.num_heads={config.scratch.num_heads}",
    )
