"""Config files: TOML to checked settings and back.

A key that no section knows is an error that names the nearest known one; a value of the wrong type or range is an error
that names the value. Nothing here imports torch: a bad config fails before anything heavy is loaded.
"""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from fastrl.config import AlgorithmConfig, EvalConfig, TrainConfig, WarmupConfig
from fastrl.statistics import ks_up_to

Config = TypeVar("Config", TrainConfig, WarmupConfig, EvalConfig)


def nearest(name: str, known: list[str]) -> str:
    """`, did you mean 'x'?` for the known name closest to `name`, else the list of known names."""
    match = difflib.get_close_matches(name, known, n=1)
    return f", did you mean '{match[0]}'?" if match else f"; known: {', '.join(known)}"


def _reject_unknown(cls: type, data: dict[str, Any], path: str = "") -> None:
    hints = get_type_hints(cls)
    for key, value in data.items():
        if key not in hints:
            raise ValueError(f"unknown key '{path}{key}'{nearest(key, list(hints))}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ValueError(f"'{path}{key}' is a section, got {value!r}")
            _reject_unknown(hints[key], value, f"{path}{key}.")


def from_dict(cls: type[Config], data: dict[str, Any]) -> Config:
    """Build a config from nested dicts. ValueError for unknown keys (with the nearest known) and for wrong values."""
    _reject_unknown(cls, data)
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ValueError("; ".join(lines)) from None


def load_config(cls: type[Config], path: str | Path) -> Config:
    """Read a TOML file. FileNotFoundError, or ValueError with the file's name and what is wrong in it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    try:
        return from_dict(cls, tomllib.loads(path.read_text()))
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def to_toml(config: Any) -> str:
    """The resolved config as TOML text, every key present."""
    return tomli_w.dumps(dataclasses.asdict(config))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_sampling(temperature: float, top_p: float, top_k: int, where: str) -> None:
    _require(temperature >= 0, f"{where}.temperature must be >= 0, got {temperature}")
    _require(0 < top_p <= 1, f"{where}.top_p must be in (0, 1], got {top_p}")
    _require(top_k >= 0, f"{where}.top_k must be >= 0 (0: off), got {top_k}")


def check_train(config: TrainConfig) -> TrainConfig:
    """The config with its preset applied. ValueError for values that cannot work together; nothing is loaded for it."""
    batch, algorithm, sampler, run = config.batch, config.algorithm, config.sampler, config.run
    for section, name, value, least in (
        ("batch", "prompts_per_step", batch.prompts_per_step, 1),
        ("batch", "rollouts_per_prompt", batch.rollouts_per_prompt, 1),
        ("sampler", "max_new_tokens", sampler.max_new_tokens, 1),
        ("sampler", "batch_size", sampler.batch_size, 1),
        ("algorithm", "updates_per_batch", algorithm.updates_per_batch, 1),
        ("run", "num_steps", run.num_steps, 1),
        ("run", "keep_last", run.keep_last, 1),
        ("run", "checkpoint_every", run.checkpoint_every, 1),
        ("run", "scored_rollouts", run.scored_rollouts, 0),
        ("evaluation", "num_samples", config.evaluation.num_samples, 1),
    ):
        _require(value >= least, f"{section}.{name} must be at least {least}, got {value}")
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(config.optimizer.lr >= 0, f"optimizer.lr must be >= 0, got {config.optimizer.lr}")
    _require(sampler.temperature > 0, f"sampler.temperature must be above 0, got {sampler.temperature}")
    _require(
        sampler.top_p == 1 and sampler.top_k == 0,
        f"training samples by temperature only: top_p={sampler.top_p}, top_k={sampler.top_k} would make the sampler's "
        "distribution another one than the loss's; set them under [evaluation]",
    )
    _check_sampling(config.evaluation.temperature, config.evaluation.top_p, config.evaluation.top_k, "evaluation")
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
    if algorithm.objective in ("rloo", "grpo", "dr-grpo"):
        _require(
            batch.rollouts_per_prompt > 1,
            f"objective {algorithm.objective} compares the rollouts of a prompt: batch.rollouts_per_prompt must be at "
            f"least 2, got {batch.rollouts_per_prompt}",
        )
    _require(algorithm.importance_cap > 1, f"algorithm.importance_cap must be above 1, got {algorithm.importance_cap}")
    _require(
        sampler.kv_cache_bytes >= 0, f"sampler.kv_cache_bytes must be >= 0 (0: auto), got {sampler.kv_cache_bytes}"
    )
    if config.evaluation.every:
        known = best_metric_names(config.evaluation.num_samples)
        _require(
            run.best_metric in known,
            f"run.best_metric = '{run.best_metric}' is not in an evaluation of {config.evaluation.num_samples} samples"
            f"{nearest(run.best_metric, known)}",
        )
    return dataclasses.replace(config, algorithm=_apply_preset(algorithm))


def best_metric_names(num_samples: int) -> list[str]:
    """What run.best_metric may be: a point of a curve, or a scalar of the evaluation."""
    curves = [f"{curve}/{k}" for curve in ("pass_at_k", "maj_at_k") for k in ks_up_to(num_samples)]
    return [*curves, "mean_token_entropy", "distinct_answers", "distinct_correct_answers"]


def _apply_preset(algorithm: AlgorithmConfig) -> AlgorithmConfig:
    if algorithm.preset == "none":
        return algorithm
    return dataclasses.replace(
        algorithm,
        surrogate="ppo_clip",
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=0.0,
        reduction="micro-batch-mean",
        minibatch_cut="after-dropping",
    )


def check_eval(config: EvalConfig) -> None:
    """ValueError for an evaluation that cannot run."""
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(
        config.evaluation.num_samples >= 1,
        f"evaluation.num_samples must be at least 1, got {config.evaluation.num_samples}",
    )
    _check_sampling(config.evaluation.temperature, config.evaluation.top_p, config.evaluation.top_k, "evaluation")
