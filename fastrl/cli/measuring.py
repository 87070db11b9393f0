"""`fastrl eval`, `fastrl compare` and `fastrl ledger`: what became of a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastrl.cli.arguments import Flat, parse, parse_with_config
from fastrl.cli.quiet import without_progress_bars
from fastrl.config.schema import EvalConfig, WithPaths


@dataclass(frozen=True)
class EvalCommand:
    """Evaluate a model: fastrl eval CONFIG.toml [--section.key value …]"""

    config: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)


@dataclass(frozen=True)
class CompareCommand(WithPaths):
    """Evaluations side by side: fastrl compare RUN RUN … [--output PATH]"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders or evaluation files over the same problems; differences are to the first."""
    output: Path = Path("comparison")
    """PATH.png and PATH.html are written."""


@dataclass(frozen=True)
class LedgerCommand(WithPaths):
    """Where a run moved probability, by kind of completion and by rank of the token: fastrl ledger RUN"""

    run: tyro.conf.Positional[Path]
    """Folder of a run with ledger.every above 0."""


def eval_command(arguments: list[str]) -> None:
    """Sample and judge a split: pass@k, majority, lengths, calibration."""
    command = parse_with_config(EvalCommand, arguments, "eval")
    from fastrl.evaluation.evaluate import evaluate

    without_progress_bars()
    evaluate(command.config)


def compare_command(arguments: list[str]) -> None:
    """Evaluations side by side: figure, page, paired differences."""
    command = parse(CompareCommand, arguments, "compare")
    from fastrl.evaluation.compare import compare

    print(compare(list(command.runs), command.output))


def ledger_command(arguments: list[str]) -> None:
    """Where a run moved probability, by kind of completion and rank of the token."""
    command = parse(LedgerCommand, arguments, "ledger")
    from fastrl.ledger.tables import ledger_text

    print(ledger_text(command.run), end="")
