"""Checkpoints: the model as Hugging Face safetensors, the rest as safetensors and JSON; nothing is pickled.

    checkpoints/step-000100/
        model.safetensors, config.json, tokenizer files    loads in transformers and in vLLM as it is
        trainer/optimizer.safetensors                      AdamW state, float32 masters, RNG states
        state.json                                         step, data position, evaluation history
        manifest.json                                      SHA-256 of every file, written last

A checkpoint is written under a temporary name and renamed when complete. A damaged one is recognised by its manifest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
OPTIMIZER = "trainer/optimizer.safetensors"  # in a folder of its own: vLLM reads every safetensors file beside a config
PREFIX = "step-"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    folder: Path, step: int, *, save_model: Callable[[Path], None], tensors: dict[str, Tensor], state: dict
) -> Path:
    """Write `folder/step-NNNNNN` and return it. `save_model(path)` writes model and tokenizer files into a folder."""
    final = folder / f"{PREFIX}{step:06d}"
    draft = folder / f".draft-{final.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_model(draft)
    (draft / OPTIMIZER).parent.mkdir()
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft / OPTIMIZER)
    (draft / "state.json").write_text(json.dumps({"step": step} | state, indent=1))
    sums = {str(p.relative_to(draft)): _sha256(p) for p in sorted(draft.rglob("*")) if p.is_file()}
    (draft / MANIFEST).write_text(json.dumps(sums, indent=1))
    for path in draft.rglob("*"):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)
    _sync(folder)
    return final


def defect(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there with the checksum of the manifest."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"unreadable manifest ({error})"
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} is damaged (checksum differs)"
    return None


def list_steps(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def latest_sound(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint; damaged ones are passed over, each with one message through `say`."""
    for checkpoint in list_steps(folder):
        problem = defect(checkpoint)
        if problem is None:
            return checkpoint
        say(f"checkpoint {checkpoint} cannot be used: {problem}; trying the previous one")
    return None


def load(checkpoint: Path) -> tuple[dict[str, Tensor], dict]:
    """(tensors, state) as given to `save`."""
    return load_file(checkpoint / OPTIMIZER), json.loads((checkpoint / "state.json").read_text())


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints (`best` is a folder of its own), and abandoned drafts."""
    for old in [*list_steps(folder)[keep_last:], *folder.glob(".draft-*")]:
        shutil.rmtree(old)


def keep_as_best(checkpoint: Path) -> None:
    """Make `best` beside the checkpoint a full copy of it, replaced in one rename."""
    best, draft = checkpoint.parent / "best", checkpoint.parent / ".draft-best"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(checkpoint, draft)
    shutil.rmtree(best, ignore_errors=True)
    draft.rename(best)


def rng_tensors() -> dict[str, Tensor]:
    """States of torch's global generators. Everything else draws from seeds that are functions of the step."""
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(tensors: dict[str, Tensor]) -> None:
    """Inverse of `rng_tensors`."""
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        states = [tensors[key] for key in sorted(k for k in tensors if k.startswith("rng.cuda."))]
        torch.cuda.set_rng_state_all(states)
