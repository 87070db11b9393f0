"""`fastrl push`: a checkpoint, with its model card, as one commit of a repository on the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from fastrl.config.schema import WithPaths
from fastrl.hub.card import model_card, without_places
from fastrl.hub.published import find_published
from fastrl.records.durable import write_file


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


def push(command: PushCommand) -> str:
    """Push, or write the card; returns where it is. ValueError or OSError with one message where that cannot be."""
    validate_repo_id(command.repo)
    if command.repo.count("/") != 1:
        raise ValueError(f"--repo {command.repo!r}: expected owner/name")
    published = find_published(command.source, command.evaluations)
    card = model_card(published, command.repo, command.license)
    if command.card_only:
        write_file(command.card_only, str(card))
        return str(command.card_only)
    files = [CommitOperationAdd(path.name, _published(path)) for path in published.files()]
    files.append(CommitOperationAdd("README.md", str(card).encode()))
    api = HfApi(library_name="fastrl")
    address = api.create_repo(command.repo, private=command.private, exist_ok=True)
    if command.private and not api.model_info(command.repo).private:
        raise ValueError(f"--private: {command.repo} is there already, and public: make it private, or push elsewhere")
    message = f"Step {published.step} of {without_places(published.config.task.name)}"
    api.create_commit(command.repo, files, commit_message=message)
    return str(address)


def _published(path: Path) -> Path | bytes:
    """A file, or its content where that says in which folder of this machine the base of an adapter lies."""
    if path.name != "adapter_config.json":
        return path
    config = json.loads(path.read_bytes())
    base = without_places(config["base_model_name_or_path"])
    return json.dumps(config | {"base_model_name_or_path": base}, indent=2).encode()
