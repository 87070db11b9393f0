"""Config files: TOML to settings and back.

An unknown key is an error that names the nearest known one. A value of the wrong type or outside its range is an error
that names the value. Nothing here imports torch: a bad config fails before anything loads.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import TypeAdapter, ValidationError

from fastrl.config.annotations import check_value, nearest
from fastrl.config.old_keys import refuse_old_keys
from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import annotations_of

Config = TypeVar("Config", TrainConfig, WarmupConfig, EvalConfig)


def _check_data(cls: type, data: dict[str, Any], path: str = "") -> None:
    annotations = annotations_of(cls)
    for key, value in data.items():
        name = f"{path}{key}"
        if key not in annotations:
            raise ValueError(f"unknown key '{name}'{nearest(key, annotations)}")
        if dataclasses.is_dataclass(annotations[key]) and isinstance(value, dict):
            _check_data(annotations[key], value, f"{name}.")
        else:
            check_value(name, value, annotations[key])


def from_dict(cls: type[Config], data: dict[str, Any]) -> Config:
    """A config from nested dicts. ValueError for old and unknown keys, with the name that is meant, and for values."""
    refuse_old_keys(data)
    _check_data(cls, data)
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        found = (
            (".".join(map(str, e["loc"])), e["input"], e["msg"].removeprefix("Value error, ")) for e in error.errors()
        )
        raise ValueError("; ".join(f"{name} = {value!r}: {message}" for name, value, message in found)) from None


def load_config(cls: type[Config], path: str | Path) -> Config:
    """Read a TOML file. FileNotFoundError, or ValueError with the file's name and what is wrong in it."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # with or without a byte-order mark
        if cls is EvalConfig and data.keys() & {"algorithm", "batch", "optimizer", "run"}:
            return eval_config(beside(path, from_dict(TrainConfig, data)))
        return beside(path, from_dict(cls, data))
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def beside(path: Path, config: Config) -> Config:
    """The config with the folder of its file as the one where a user's reward is, unless it names another."""
    task = config.task
    is_own = (":" in name and not name.startswith("reasoning-gym:") for name in (task.name, *task.rewards))
    if task.reward_folder or not any(is_own):
        return config
    return dataclasses.replace(config, task=dataclasses.replace(task, reward_folder=str(path.parent.absolute())))


def eval_config(config: TrainConfig) -> EvalConfig:
    """The evaluation that a training config describes: `fastrl eval` takes a run's config.toml as it is."""
    return EvalConfig(
        model=config.model,
        task=config.task,
        sampler=config.sampler,
        evaluation=config.evaluation,
        correct_threshold=config.algorithm.correct_threshold,
        truncated="wrong" if config.algorithm.truncated == "wrong" else "judged",
    )


def to_toml(config: Any) -> str:
    """The resolved config as TOML text, every key present."""
    return tomli_w.dumps(dataclasses.asdict(config))
