"""`fastrl plan`, `fastrl tasks`, `fastrl settings` and `fastrl doctor`: what to know before a run."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from fastrl.cli.arguments import Flat, parse, parse_with_config
from fastrl.config.reference import reference
from fastrl.config.schema import PathText, TaskConfig, TrainConfig, WithPaths


@dataclass(frozen=True)
class PlanCommand:
    """Predict a run's memory and a step's seconds: fastrl plan CONFIG.toml [--section.key value …]; loads no weights"""

    config: Annotated[TrainConfig, Flat] = field(default_factory=TrainConfig)
    device: Literal["here", "cpu", "cuda"] = "here"
    """Plan for this kind of device instead of the one the run would choose here."""
    memory_gib: float = 0.0
    """Memory that the run may fill; 0: all that this machine's device has."""
    prompt_tokens: int = 0
    """Length of the longest prompt; 0: found out from the task and the tokenizer."""
    card: str = ""
    """GPU whose seconds are expected (H100, A100, L40S, …); empty: this machine's."""
    ranks: int = 1
    """Processes with a device each, among which FSDP2 shards the model; numbers are per rank."""


@dataclass(frozen=True)
class TasksCommand(WithPaths):
    """Which tasks there are: fastrl tasks. What one looks like: fastrl tasks NAME [--train PATH]"""

    name: tyro.conf.Positional[str] = ""
    """Show a problem of this task, its prompt, an answer and what the reward makes of it; empty: list all tasks."""
    train: PathText = ""
    """As task.train: rows of a task that generates none."""
    template: str = "auto"
    """As task.template."""
    reward_folder: PathText = ""
    """As task.reward_folder."""


@dataclass(frozen=True)
class SettingsCommand:
    """Every setting, its default, range and meaning, as Markdown: fastrl settings"""


@dataclass(frozen=True)
class DoctorCommand:
    """Versions, and which sampler, kernels and attention run here: fastrl doctor"""


def plan_command(arguments: list[str]) -> None:
    """Predict a run's memory and a step's seconds; loads no weights."""
    command = parse_with_config(PlanCommand, arguments, "plan")
    from fastrl.plan.expected import expected_text
    from fastrl.plan.plan import make_plan, plan_text
    from fastrl.plan.savings import fitting_settings, savings_text
    from fastrl.policy.pretrained import Pretrained

    machine = {
        "device_type": "" if command.device == "here" else command.device,
        "memory_gib": command.memory_gib,
        "prompt_tokens": command.prompt_tokens,
        "num_ranks": command.ranks,
        "base": Pretrained(command.config.model),
    }
    plan = make_plan(command.config, **machine)
    print(plan_text(plan), expected_text(plan.work, plan.shape, command.card), sep="\n")
    if not plan.fits:
        machine["prompt_tokens"] = plan.work.sequence_tokens - command.config.sampler.max_new_tokens  # found already
        print(savings_text(fitting_settings(command.config, **machine)))


def tasks_command(arguments: list[str]) -> None:
    """Which tasks there are, and what a problem of one looks like."""
    command = parse(TasksCommand, arguments, "tasks")
    from fastrl.tasks.listing import list_text, task_text

    if not command.name:
        print(list_text(), end="")
        return
    where = {"train": command.train, "reward_folder": command.reward_folder}
    config = TaskConfig(name=command.name, template=command.template, num_train=1, num_workers=1, **where)
    print(task_text(config), end="")


def settings_command(arguments: list[str]) -> None:
    """Every setting, its default, range and meaning."""
    parse(SettingsCommand, arguments, "settings")
    print(reference(), end="")


def doctor_command(arguments: list[str]) -> None:
    """What is installed, and what will run here, and why."""
    parse(DoctorCommand, arguments, "doctor")
    from fastrl.doctor import report

    print(report())
