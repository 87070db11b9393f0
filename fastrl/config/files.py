"""Config files: TOML to settings and back.

A key that no section knows is an error that names the nearest known one; a value of the wrong type is an error that
names the value. Ranges are in `config_checks`. Nothing here imports torch: a bad config fails before anything loads.
"""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig

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
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if hints[key] in (int, float) and not is_number:
            raise ValueError(f"{path}{key} = {value!r}: a number is needed")
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
    if task.reward_folder or ":" not in task.name or task.name.startswith("reasoning-gym:"):
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
