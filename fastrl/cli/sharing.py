"""`fastrl push`: what leaves this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastrl.cli.arguments import parse
from fastrl.config.schema import WithPaths


@dataclass(frozen=True)
class PushCommand(WithPaths):
    """A checkpoint and its card to the hub: fastrl push RUN_OR_CHECKPOINT --repo owner/name [--private]"""

    source: tyro.conf.Positional[Path]
    """A run's folder, whose newest checkpoint is taken, or a checkpoint, such as RUN/checkpoints/best."""
    repo: str
    """owner/name on the hub; made if it is not there. The token is that of `hf auth login`, or HF_TOKEN."""
    private: bool = False
    """A repository that is made is private; one that is there must be."""
    license: str = ""
    """Of the model, as the hub spells it; empty: the base model's, where its folder has a card that says it."""
    evaluations: Annotated[tuple[Path, ...], tyro.conf.arg(name="evaluation")] = ()
    """Files of more evaluations of this very checkpoint, from `fastrl eval`; those of the run are found."""
    card_only: Path | None = None
    """Write the card here, and push nothing."""


def push_command(arguments: list[str]) -> None:
    """Put a checkpoint and its model card on the hub."""
    from fastrl.hub.push import push, write_card

    command = parse(PushCommand, arguments, "push")
    about = {"license": command.license, "evaluations": command.evaluations}
    if command.card_only:
        write_card(command.card_only, command.source, command.repo, **about)
        print(f"model: {command.card_only}")
    else:
        print(f"model: {push(command.source, command.repo, private=command.private, **about)}")
