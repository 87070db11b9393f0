"""The run folder: one config, metrics, rollouts, checkpoints, evaluations. It never takes a second run's files.

config.toml · metrics.jsonl · tensorboard/ · rollouts/step-NNNNNN.jsonl · checkpoints/ · eval/*.json
"""

import dataclasses
import os
from pathlib import Path

from fastrl.config import TrainConfig
from fastrl.config_files import load_config, to_toml
from fastrl.records.jsonl import append_jsonl
from fastrl.rollouts import Rollout

# A resumed run may change these: they do not change what a step computes (num_steps: but for a decaying schedule).
FREE_ON_RESUME = {
    ("evaluation", "every"),
    ("evaluation", "at_end"),
    ("evaluation", "split"),
    ("evaluation", "num_samples"),
    ("run", "num_steps"),
    ("run", "checkpoint_every"),
    ("run", "keep_last"),
    ("run", "sinks"),
    ("run", "max_nonfinite_steps"),
    ("run", "watchdog_s"),
    ("task", "num_workers"),
    ("task", "reward_folder"),
}


class RunFolder:
    """Checks the folder and writes nothing: ValueError when it holds another config, or a run not being resumed."""

    def __init__(self, config: TrainConfig, *, is_resumed: bool):
        self.config = config
        _check_writable(Path(config.run.folder))
        self.path = Path(config.run.folder)
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "eval"
        config_path = self.path / "config.toml"
        if config_path.exists():
            differences = _differences(load_config(TrainConfig, config_path), config)
            if differences:
                raise ValueError(f"{self.path} holds a run with another config: {'; '.join(differences)}")
            if not is_resumed:
                raise ValueError(f"{self.path} already holds this run; continue it with --resume or choose run.folder")

    def create(self) -> None:
        """Make the folder and save the resolved config."""
        self.path.mkdir(parents=True, exist_ok=True)
        config_path = self.path / "config.toml"
        draft = config_path.with_suffix(".draft")
        draft.write_text(to_toml(self.config))
        draft.replace(config_path)

    def write_rollouts(self, step: int, rollouts: list[Rollout]) -> None:
        """One JSON line per rollout; per-token values that nobody computed are null. A repeated step is overwritten."""
        folder = self.path / "rollouts"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:06d}.jsonl"
        path.unlink(missing_ok=True)
        append_jsonl(path, [_rollout_row(r) for r in rollouts])


def _check_writable(path: Path) -> None:
    """OSError when `path` could not be a folder that we write into."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"run.folder = '{path}': {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"run.folder = '{path}': {existing} cannot be written to")


def _rollout_row(rollout: Rollout) -> dict:
    return {
        "problem_id": rollout.problem_id,
        "prompt": rollout.prompt_text,
        "completion": rollout.text,
        "reward": rollout.reward,
        "penalty": rollout.penalty,
        "reason": rollout.reason,
        "advantage": rollout.advantage,
        "finish_reason": rollout.finish_reason,
        "group": rollout.group,
        "weight_version": rollout.weight_version,
        "completion_ids": rollout.completion_ids,
        "sampler_logprobs": rollout.sampler_logprobs,
        "trainer_logprobs": rollout.trainer_logprobs,
        "entropy": rollout.entropy,
    }


def _differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """`section.key: old → new` for every setting that may not change between a run and its resumption."""
    found = []
    for section in dataclasses.fields(TrainConfig):
        before, after = (dataclasses.asdict(getattr(c, section.name)) for c in (old, new))
        for key, value in before.items():
            if value != after[key] and (section.name, key) not in FREE_ON_RESUME | {("run", "folder")}:
                found.append(f"{section.name}.{key} is {value!r} there, {after[key]!r} here")
    return found
