"""A checkpoint, with its model card, as one commit of a repository on the Hugging Face hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from fastrl.hub.card import model_card, without_places
from fastrl.hub.published import Published, find_published
from fastrl.records.durable import write_file


def push(source: Path, repo: str, *, private: bool = False, license: str = "", evaluations: Sequence[Path] = ()) -> str:
    """Push a run's newest checkpoint, or the checkpoint that `source` is, with its card; returns where it is.

    private: a repository that is made is private, one that is there must be. license: as the hub spells it; empty: the
    base model's, where its folder says it. evaluations: files of more evaluations of this very checkpoint; those of the
    run are found. ValueError or OSError with one message where that cannot be.
    """
    published, card = carded(source, repo, license, evaluations)
    files = [CommitOperationAdd(path.name, _published(path)) for path in published.files()]
    files.append(CommitOperationAdd("README.md", str(card).encode()))
    api = HfApi(library_name="fastrl")
    address = api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise ValueError(f"--private: {repo} is there already, and public: make it private, or push elsewhere")
    message = f"Step {published.step} of {without_places(published.config.task.name)}"
    api.create_commit(repo, files, commit_message=message)
    return str(address)


def write_card(path: Path, source: Path, repo: str, *, license: str = "", evaluations: Sequence[Path] = ()) -> None:
    """Write the card that `push` would push. Errors as there."""
    _, card = carded(source, repo, license, evaluations)
    write_file(path, str(card))


def carded(source: Path, repo: str, license: str, evaluations: Sequence[Path]) -> tuple[Published, ModelCard]:
    """What is published and its card, for a repository that is spelled as the hub spells it."""
    validate_repo_id(repo)
    if repo.count("/") != 1:
        raise ValueError(f"--repo {repo!r}: expected owner/name")
    published = find_published(source, evaluations)
    return published, model_card(published, repo, license)


def _published(path: Path) -> Path | bytes:
    """A file, or its content where that says in which folder of this machine the base of an adapter lies."""
    if path.name != "adapter_config.json":
        return path
    config = json.loads(path.read_bytes())
    base = without_places(config["base_model_name_or_path"])
    return json.dumps(config | {"base_model_name_or_path": base}, indent=2).encode()
