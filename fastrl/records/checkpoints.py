"""Checkpoints on disk: found, checked, read, kept. `CheckpointWriter` writes them. Nothing is pickled.

    checkpoints/step-000100/
        model.safetensors, config.json, tokenizer files    loads in transformers and in vLLM as it is
        trainer/shard-*.safetensors                        AdamW state, float32 masters, RNG states of every rank
        state.json                                         step, data position, best step so far
        manifest.json                                      SHA-256 of every file, written last

The trainer's tensors are in torch.distributed.checkpoint's safetensors format: each rank writes its rows of each
tensor, the headers say which rows, any number of ranks reads them back. Several machines need a folder that all see.
A checkpoint is written under a temporary name and renamed when complete; one that goes is renamed before it is deleted.
"""

import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from fastrl.process.ranks import ALONE, Ranks
from fastrl.records.durable import replacing, sync, sync_tree

MANIFEST = "manifest.json"
STATE = "state.json"
TRAINER = "trainer"  # a folder of its own: vLLM reads every safetensors file beside a config
PREFIX = "step-"
DRAFT = ".draft-"
NEXT_BEST = ".next-best"


def final_path(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:06d}"


def draft_path(final: Path) -> Path:
    """Where a checkpoint is while it is not whole: written there first, moved there before it is deleted."""
    return final.with_name(f"{DRAFT}{final.name}")


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, several at a time, by their path below `folder`."""
    files = sorted(p for p in paths if p.is_file())
    with ThreadPoolExecutor() as pool:
        return dict(zip((str(p.relative_to(folder)) for p in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(draft: Path, final: Path, sums: dict[str, str]) -> None:
    """Write the manifest, with `sums` of files that are known already, sync everything, give the draft its name."""
    rest = (p for p in draft.rglob("*") if str(p.relative_to(draft)) not in sums)
    (draft / MANIFEST).write_text(json.dumps(sums | checksums(draft, rest), indent=1, sort_keys=True))
    sync_tree(draft)
    if final.exists():
        delete(final)
    draft.rename(final)
    sync(final.parent)


def delete(checkpoint: Path) -> None:
    """Remove a checkpoint; it is never seen half gone."""
    gone = checkpoint.with_name(f"{DRAFT}gone-{checkpoint.name}")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def defect(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there with the checksum of the manifest."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"unreadable manifest ({error})"
    if missing := [name for name in expected if not (checkpoint / name).is_file()]:
        return f"{missing[0]} is missing"
    found = checksums(checkpoint, [checkpoint / name for name in expected])
    if damaged := [name for name in expected if found[name] != expected[name]]:
        return f"{damaged[0]} is damaged (checksum differs)"
    return None


def list_steps(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, newest first."""
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def latest_sound(folder: Path, say: Callable[[str], None], ranks: Ranks = ALONE) -> Path | None:
    """The newest undamaged checkpoint, `best` as the last resort; None where there never was one.

    Damaged ones are renamed to `damaged-…`, each with one message through `say`: nothing counts or deletes them later.
    ValueError when there are checkpoints and all are damaged: starting over is the user's decision.
    Collective: the main rank looks, renames and says, the others get its answer.
    """
    return ranks.on_main(lambda: _latest_sound(folder, say))


def _latest_sound(folder: Path, say: Callable[[str], None]) -> Path | None:
    _finish_best(folder / "best")
    found = list_steps(folder)
    for checkpoint in [*found, *([folder / "best"] if (folder / "best").is_dir() else [])]:
        problem = defect(checkpoint)
        if problem is None:
            return checkpoint
        aside = next(p for n in itertools.count() if not (p := folder / f"damaged-{checkpoint.name}.{n}").exists())
        checkpoint.rename(aside)
        say(f"checkpoint {checkpoint} cannot be used: {problem}; it is now {aside.name}, trying the previous one")
    if found or list(folder.glob("damaged-*")):
        raise ValueError(f"every checkpoint in {folder} is damaged; remove or rename the folder to start over")
    return None


def load_state(checkpoint: Path) -> dict:
    """The `state` given to `save`, and its step."""
    return json.loads((checkpoint / STATE).read_text())


def load_tensors(
    checkpoint: Path, allocate: Callable[[str, torch.Size, torch.dtype], Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors given to `save`, by name.

    `allocate(name, size, dtype)` gives the tensor to fill, where size is that of the whole tensor: on any device, or a
    DTensor, of which each rank reads its own rows. Without it all are whole and in CPU memory.
    """
    tensors = {}
    for name, (size, dtype) in _stored(checkpoint).items():
        if not name.startswith("rng."):
            tensors[name] = allocate(name, size, dtype) if allocate else torch.empty(size, dtype=dtype)
    return _fill(tensors, checkpoint)


def _stored(checkpoint: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Size and dtype of every whole tensor in a checkpoint."""
    metadata = dcp.HuggingFaceStorageReader(str(checkpoint / TRAINER)).read_metadata().state_dict_metadata
    return {name: (value.size, value.properties.dtype) for name, value in metadata.items()}


def _fill(tensors: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Read into `tensors` in place. Every rank reads for itself, so that this is no collective."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint / TRAINER)), no_dist=True)
    return tensors


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints (`best` is a folder of its own), and abandoned drafts."""
    for old in list_steps(folder)[keep_last:]:
        delete(old)
    for draft in folder.glob(".*draft*"):
        shutil.rmtree(draft)


def keep_as_best(checkpoint: Path) -> None:
    """Make `best` beside the checkpoint a full copy of it. The old one goes when the new one is in its place."""
    best = checkpoint.with_name("best")
    _finish_best(best)
    try:
        with replacing(best.with_name(NEXT_BEST)) as draft:
            shutil.copytree(checkpoint, draft)
    except OSError as error:
        raise OSError(f"{best}, a copy of {checkpoint.name}, could not be written: {error}") from error
    _finish_best(best)


def repair_best(checkpoint: Path) -> None:
    """Make `best` a copy of a checkpoint, unless it is that already or the checkpoint is gone or damaged."""
    manifests = [path / MANIFEST for path in (checkpoint, checkpoint.with_name("best"))]
    is_copied = all(m.exists() for m in manifests) and manifests[0].read_bytes() == manifests[1].read_bytes()
    if not is_copied and defect(checkpoint) is None:
        keep_as_best(checkpoint)


def _finish_best(best: Path) -> None:
    """Put a whole copy, if there is one, in the place of `best`: now, or after a process died in between."""
    whole = best.with_name(NEXT_BEST)
    if whole.exists():
        if best.exists():
            delete(best)
        whole.rename(best)
        sync(best.parent)


def rng_tensors(ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """States of torch's global generators on every rank, by name and rank; the same on all. Collective.

    Everything else draws from seeds that are functions of the step.
    """
    states = ranks.gather(_generator_states())
    return {f"{name}.{number}": state for number, own in enumerate(states) for name, state in own.items()}


def _generator_states() -> dict[str, Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    return states | {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def restore_rng(checkpoint: Path, ranks: Ranks = ALONE) -> None:
    """Set this rank's generators; those of which the checkpoint has no state (more ranks now) stay as they are."""
    stored = _stored(checkpoint)
    names = [name for name in (f"{kind}.{ranks.rank}" for kind in _generator_states()) if name in stored]
    states = _fill({name: torch.empty(stored[name][0], dtype=torch.uint8) for name in names}, checkpoint)
    for name, state in states.items():
        torch.set_rng_state(state) if name.startswith("rng.cpu") else torch.cuda.set_rng_state(state)
