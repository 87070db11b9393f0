"""`fastrl train` and `fastrl warmup`."""

from dataclasses import dataclass, field
from typing import Annotated

from fastrl.cli.arguments import Flat, parse_with_config
from fastrl.cli.quiet import is_main_rank, without_progress_bars
from fastrl.config.schema import TrainConfig, WarmupConfig


@dataclass(frozen=True)
class TrainCommand:
    """Train: fastrl train CONFIG.toml [--section.key value …] [--resume [--accept-changes]]"""

    config: Annotated[TrainConfig, Flat] = field(default_factory=TrainConfig)
    resume: bool = False
    """Continue the run in run.folder from its newest sound checkpoint."""
    accept_changes: bool = False
    """With --resume: go on although data, reward, tokenizer or base weights are not those of the checkpoint."""


@dataclass(frozen=True)
class WarmupCommand:
    """Supervised warm start: fastrl warmup CONFIG.toml [--section.key value …]"""

    config: Annotated[WarmupConfig, Flat] = field(default_factory=WarmupConfig)


def train_command(arguments: list[str]) -> None:
    """Train a model on a task's rewards."""
    command = parse_with_config(TrainCommand, arguments, "train")
    from fastrl.run.training import train

    without_progress_bars()
    if command.accept_changes and not command.resume:
        raise ValueError("--accept-changes is for a run that is continued: it goes with --resume")
    folder = train(command.config, resume=command.resume, accept_changes=command.accept_changes)
    if is_main_rank():
        print(f"run folder: {folder}")


def warmup_command(arguments: list[str]) -> None:
    """Train a model on demonstrations: a supervised warm start."""
    command = parse_with_config(WarmupCommand, arguments, "warmup")
    from fastrl.warmup import warmup

    without_progress_bars()
    print(f"model: {warmup(command.config)}")
