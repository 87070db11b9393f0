"""`fastrl init`: five questions, or flags, and a folder that runs."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from fastrl.cli.arguments import parse
from fastrl.cli.starter import OWN, Starter, write_starter
from fastrl.config.algorithm import AlgorithmConfig
from fastrl.config.schema import WithPaths

QUESTIONS = {
    "folder": ("folder to make", "my-run"),
    "model": ("model, a folder or a hub id", "Qwen/Qwen3-0.6B"),
    "task": (f"what is rewarded: {OWN} (a function of yours), math, countdown-words, reasoning-gym:NAME, …", OWN),
    "train": ("training data, JSON lines or a hub dataset; empty: a few rows to begin with, or the task's own", ""),
    "objective": ("objective: nsr, psr, w-reinforce, grpo, rloo, dr-grpo, …", AlgorithmConfig.objective),
}


@dataclass(frozen=True)
class InitCommand(WithPaths):
    """A folder with config, reward and data that run as they are: fastrl init FOLDER [--model M] [--task T] …

    On a terminal, what no flag says is asked; elsewhere it takes its default, which is said.
    """

    folder: tyro.conf.Positional[str] = ""
    """Folder to make; empty: my-run."""
    model: str = ""
    """Folder or hub id of the model; empty: Qwen/Qwen3-0.6B."""
    task: str = ""
    """own: a reward function of yours, in reward.py; or a task's name, such as math; empty: own."""
    train: str = ""
    """Training data, JSON lines or a hub dataset; empty: a few rows are written, or the task makes its own."""
    objective: str = ""
    """How rewards become credit; empty: nsr."""
    force: bool = False
    """Write over files that are there."""


def init_command(arguments: list[str]) -> None:
    """Make a folder with config, reward and data that run as they are."""
    command = parse(InitCommand, arguments, "init")
    answers = {name: getattr(command, name) or _answer(name) for name in QUESTIONS}
    starter = Starter(**answers | {"folder": Path(answers["folder"]).expanduser()})
    for path in write_starter(starter, command.force):
        print(f"wrote {path}")
    print(f"next: cd {starter.folder} && fastrl train config.toml")


def _answer(name: str) -> str:
    """What a person types, or the default: for an empty line, and where there is no terminal, which is said."""
    question, default = QUESTIONS[name]
    if not sys.stdin.isatty():
        print(f"{name}: {default or 'none'} (not given, no terminal to ask)")
        return default
    try:
        return input(f"{question} [{default}]: ").strip() or default
    except EOFError:
        raise ValueError(f"no answer to {question!r}; flags would do, such as --{name} {default or '…'}") from None
