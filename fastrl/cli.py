"""The command line: `fastrl train | watch | warmup | eval | compare | ledger | verify | audit | plan | settings |
doctor`.

Heavy imports happen in the commands.
"""

import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastrl.config.files import beside, load_config
from fastrl.config.old_keys import refuse_old_flags
from fastrl.config.reference import reference
from fastrl.config.schema import EvalConfig, TaskConfig, TrainConfig, WarmupConfig, WithPaths
from fastrl.process.interrupts import Interrupts
from fastrl.run.divergence import DivergedError
from fastrl.sampling.protocol import SamplerError
from fastrl.tasks.verifier.pool import VerifierError

Flat = tyro.conf.arg(name="")  # --section.key, not --config.section.key
Values = tyro.conf.FlagConversionOff  # --section.key False, as in the file


@dataclass(frozen=True)
class TrainCommand:
    """Train: fastrl train CONFIG.toml [--section.key value …] [--resume [--accept-changes]]"""

    config: Annotated[TrainConfig, Flat, Values] = field(default_factory=TrainConfig)
    resume: bool = False
    """Continue the run in run.folder from its newest sound checkpoint."""
    accept_changes: bool = False
    """With --resume: go on although data, reward, tokenizer or base weights are not those of the checkpoint."""


@dataclass(frozen=True)
class WarmupCommand:
    """Supervised warm start: fastrl warmup CONFIG.toml [--section.key value …]"""

    config: Annotated[WarmupConfig, Flat, Values] = field(default_factory=WarmupConfig)


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate a model: fastrl eval CONFIG.toml [--section.key value …]"""

    config: Annotated[EvalConfig, Flat, Values] = field(default_factory=EvalConfig)


@dataclass(frozen=True)
class CompareCommand(WithPaths):
    """Evaluations side by side: fastrl compare RUN RUN … [--output PATH]"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders or evaluation files over the same problems; differences are to the first."""
    output: Path = Path("comparison")
    """PATH.png and PATH.html are written."""


@dataclass(frozen=True)
class WatchCommand(WithPaths):
    """A page of a run, live while it goes on: fastrl watch RUN [RUN] [--port N]; --text: in this terminal"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """One run folder, or two that are drawn together."""
    port: int = 0
    """Of http://127.0.0.1:PORT/; 0: one that is free."""
    text: bool = False
    """A live view in the terminal instead of a page."""
    once: bool = False
    """With --text: say it once and end."""
    report: bool = False
    """Write RUN/report.html and end, as a run does by itself when it ends."""


@dataclass(frozen=True)
class LedgerCommand(WithPaths):
    """Where a run moved probability, by kind of completion and by rank of the token: fastrl ledger RUN"""

    run: tyro.conf.Positional[Path]
    """Folder of a run with ledger.every above 0."""


@dataclass(frozen=True)
class PlanCommand:
    """Predict a run's memory and a step's seconds: fastrl plan CONFIG.toml [--section.key value …]; loads no weights"""

    config: Annotated[TrainConfig, Flat, Values] = field(default_factory=TrainConfig)
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
class VerifyCommand(WithPaths):
    """Score a JSON-lines file of completions: rows `completion` and what the task needs; adds `reward` and `reason`."""

    task: str
    """countdown | math | reasoning-gym:<dataset> | module:function"""
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
    """The reward that is audited: countdown | math | reasoning-gym:<dataset> | module:function; empty: the run's."""
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


def _parse(command: type, config_class: type, arguments: list[str], name: str) -> Any:
    """CONFIG.toml first, then overrides. Without a file the defaults are the base."""
    refuse_old_flags(arguments)
    has_file = bool(arguments) and not arguments[0].startswith("-")
    base = load_config(config_class, arguments[0]) if has_file else config_class()
    prog = f"fastrl {name} CONFIG.toml"
    parsed = tyro.cli(command, default=command(config=base), args=arguments[has_file:], prog=prog)
    return replace(parsed, config=beside(Path(arguments[0]), parsed.config)) if has_file else parsed


def _without_torchao_noise() -> None:
    """transformers imports torchao where it is installed, which warns of kernels that we never call."""
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def _without_progress_bars() -> None:
    """transformers draws bars for loading and saving weights; ours is the only progress shown."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _train(arguments: list[str]) -> None:
    command = _parse(TrainCommand, TrainConfig, arguments, "train")
    from fastrl.run.training import train

    _without_progress_bars()
    if command.accept_changes and not command.resume:
        raise ValueError("--accept-changes is for a run that is continued: it goes with --resume")
    folder = train(command.config, resume=command.resume, accept_changes=command.accept_changes)
    if _is_main_rank():
        print(f"run folder: {folder}")


def _is_main_rank() -> bool:
    """The one of torchrun's processes that talks."""
    return os.environ.get("RANK", "0") == "0"


def _warmup(arguments: list[str]) -> None:
    command = _parse(WarmupCommand, WarmupConfig, arguments, "warmup")
    from fastrl.warmup import warmup

    _without_progress_bars()
    print(f"model: {warmup(command.config)}")


def _eval(arguments: list[str]) -> None:
    command = _parse(EvalCommand, EvalConfig, arguments, "eval")
    from fastrl.evaluation.evaluate import evaluate

    _without_progress_bars()
    evaluate(command.config)


def _compare(arguments: list[str]) -> None:
    command = tyro.cli(CompareCommand, args=arguments, prog="fastrl compare")
    from fastrl.evaluation.compare import compare

    print(compare(list(command.runs), command.output))


def _watch(arguments: list[str]) -> None:
    command = tyro.cli(WatchCommand, args=arguments, prog="fastrl watch")
    from fastrl.watch.watch import watch

    watch(list(command.runs), command.port, is_text=command.text, is_once=command.once, is_report=command.report)


def _ledger(arguments: list[str]) -> None:
    command = tyro.cli(LedgerCommand, args=arguments, prog="fastrl ledger")
    from fastrl.ledger.tables import ledger_text

    print(ledger_text(command.run), end="")


def _plan(arguments: list[str]) -> None:
    command = _parse(PlanCommand, TrainConfig, arguments, "plan")
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


def _verify(arguments: list[str]) -> None:
    command = tyro.cli(VerifyCommand, args=arguments, prog="fastrl verify")
    from fastrl.tasks.correctness import Correctness
    from fastrl.tasks.verify import verify_file

    task = TaskConfig(
        name=command.task, timeout_s=command.timeout_s, memory_mb=command.memory_mb, num_workers=command.num_workers
    )
    correctness = Correctness(command.correct_threshold, command.truncated)
    for key, value in verify_file(task, command.input, command.output, correctness).items():
        print(f"{key}: {value}")


def _audit(arguments: list[str]) -> None:
    command = tyro.cli(AuditCommand, args=arguments, prog="fastrl audit")
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


def _settings(arguments: list[str]) -> None:
    _take_none("settings", arguments)
    print(reference(), end="")


def _take_none(name: str, arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"fastrl {name} takes no arguments, got {arguments}")


def _doctor(arguments: list[str]) -> None:
    _take_none("doctor", arguments)
    from fastrl.doctor import report

    print(report())


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "watch": _watch,
    "warmup": _warmup,
    "eval": _eval,
    "compare": _compare,
    "ledger": _ledger,
    "verify": _verify,
    "audit": _audit,
    "plan": _plan,
    "settings": _settings,
    "doctor": _doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 with one message for bad input; 130 after a signal; 1 for a broken verifier or sampler and for
    gradients that are not finite any more (and `watchdog` ends a hung process with 1)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(importlib.metadata.version("fastrl"))
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        asks_help = bool(arguments) and arguments[0] in ("-h", "--help")
        print(f"usage: fastrl {{{' | '.join(COMMANDS)}}} …    fastrl settings explains every setting")
        return 0 if asks_help else 2
    _without_torchao_noise()
    try:
        with Interrupts():
            COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (VerifierError, SamplerError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if _is_main_rank():
            print("stopped; continue with --resume" if arguments[0] == "train" else "stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
