"""`fastrl verify` and `fastrl audit`: a reward on completions that exist."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastrl.cli.arguments import parse
from fastrl.config.schema import TaskConfig, WithPaths


@dataclass(frozen=True)
class VerifyCommand(WithPaths):
    """Score a JSON-lines file of completions: rows `completion` and what the task needs; adds `reward` and `reason`."""

    task: str
    """countdown | math | reasoning-gym:<dataset> | verifiers:<taskset> (single-turn) | module:function. Environments,
    openenv:… among them, judge conversations, which a file of completions does not hold."""
    input: Path
    """Rows to score."""
    output: Path
    """Where the same rows go, in the same order, with `reward` and `reason`."""
    timeout_s: float = TaskConfig.timeout_s
    """Seconds a verifier may spend on one completion."""
    memory_mb: int = TaskConfig.memory_mb
    """Address space of a verifier worker, in MiB."""
    num_workers: int = TaskConfig.num_workers
    """Verifier processes."""
    correct_threshold: float = 1.0
    """Correct means reward ≥ this."""
    truncated: Literal["wrong", "judged"] = "wrong"
    """Rows whose `finish_reason` is `length` are wrong, or judged like any other."""


@dataclass(frozen=True)
class AuditCommand(WithPaths):
    """What does a reward move with that must not matter? fastrl audit RUN, or --task NAME with a file of completions"""

    input: tyro.conf.Positional[Path]
    """A run folder, or JSON lines with `completion` and what the task needs, as for `fastrl verify`."""
    task: str = ""
    """The reward that is audited, no environment: countdown | math | reasoning-gym:<dataset> | verifiers:<taskset> |
    module:function; empty: the run's."""
    reference: str = ""
    """Task whose reward says what is correct; empty: the audited reward itself, which cannot show that it is wrong."""
    output: Path | None = None
    """Where the report goes as JSON."""
    num_problems: int = 200
    """Problems whose completions are judged, a fixed random sample; 0: all."""
    correct_threshold: float = 1.0
    """Correct means reward ≥ this."""
    timeout_s: float = TaskConfig.timeout_s
    """Seconds a verifier may spend on one completion."""
    num_workers: int = TaskConfig.num_workers
    """Verifier processes."""


def verify_command(arguments: list[str]) -> None:
    """Score a file of completions with a task's reward."""
    command = parse(VerifyCommand, arguments, "verify")
    from fastrl.tasks.correctness import Correctness
    from fastrl.tasks.verify import verify_file

    task = TaskConfig(
        name=command.task, timeout_s=command.timeout_s, memory_mb=command.memory_mb, num_workers=command.num_workers
    )
    correctness = Correctness(command.correct_threshold, command.truncated)
    for key, value in verify_file(task, command.input, command.output, correctness).items():
        print(f"{key}: {value}")


def audit_command(arguments: list[str]) -> None:
    """What does a reward move with that must not matter?"""
    command = parse(AuditCommand, arguments, "audit")
    from fastrl.audit.audit import audit
    from fastrl.audit.completions import completions_of, sampled
    from fastrl.audit.tables import report_text
    from fastrl.records.durable import write_file

    task = TaskConfig(name=command.task, timeout_s=command.timeout_s, num_workers=command.num_workers)
    task, completions = completions_of(command.input, task)
    completions = sampled(completions, command.num_problems)
    report = audit(task, completions, command.correct_threshold, command.reference)
    if command.output:
        write_file(command.output, json.dumps(report, indent=1))
    print(report_text(report), end="")
