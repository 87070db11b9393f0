"""Finds, checks, reads and keeps the checkpoints on disk. `CheckpointWriter` writes them. Nothing is pickled.

    checkpoints/step-000100/
        model.safetensors, config.json, tokenizer files    loads in transformers and in vLLM as it is
        trainer/shard-*.safetensors                        AdamW state, float32 masters, RNG states of every rank
        state.json                                         step, data position, best step so far
        manifest.json                                      SHA-256 of every file, written last

The trainer's tensors are in torch.distributed.checkpoint's safetensors format: each rank writes its rows of each
tensor, the headers say which rows, any number of ranks reads them back. All machines must see the folder.
A checkpoint is written under a temporary name and renamed when complete, and renamed again before it is deleted.
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
    """Where a checkpoint is written before it gets its name."""
    return final.with_name(f"{DRAFT}{final.name}")


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their path below `folder`, computed in parallel."""
    files = sorted(p for p in paths if p.is_file())
    with ThreadPoolExecutor() as pool:
        return dict(zip((str(p.relative_to(folder)) for p in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(draft: Path, final: Path, sums: dict[str, str]) -> None:
    """Write the manifest, sync everything and rename the draft. sums: checksums that are known already."""
    rest = (p for p in draft.rglob("*") if str(p.relative_to(draft)) not in sums)
    (draft / MANIFEST).write_text(json.dumps(sums | checksums(draft, rest), indent=1, sort_keys=True))
    sync_tree(draft)
    if final.exists():
        delete(final)
    draft.rename(final)
    sync(final.parent)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint. No half of it ever stands under its name."""
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

    Damaged ones are renamed to `damaged-…`, so that nothing counts or deletes them later; `say` gets one message each.
    ValueError when there are checkpoints and all are damaged: starting over is the user's decision.
    Collective: the main rank does all this, the others get its answer.
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

    `allocate(name, size of the whole tensor, dtype)` returns the tensor to fill, on any device; of a DTensor each rank
    reads its own rows. Without `allocate` all tensors are whole and in CPU memory.
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
    """Read into `tensors` in place. Not collective: every rank reads for itself."""
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
    """Replace `best` by a full copy of the checkpoint. The old one is deleted when the copy is complete."""
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
    """Let a complete copy, if there is one, become `best`; an earlier process may have died before this."""
    whole = best.with_name(NEXT_BEST)
    if whole.exists():
        if best.exists():
            delete(best)
        whole.rename(best)
        sync(best.parent)


def rng_tensors(ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """States of torch's global generators of all ranks, by name and rank. Collective: all ranks get the same.

    All other random numbers come from seeds that are functions of the step.
    """
    states = ranks.gather(_generator_states())
    return {f"{name}.{number}": state for number, own in enumerate(states) for name, state in own.items()}


def _generator_states() -> dict[str, Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    return states | {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def restore_rng(checkpoint: Path, ranks: Ranks = ALONE) -> None:
    """Set this rank's generators. One without a state in the checkpoint (there are more ranks now) stays as it is."""
    stored = _stored(checkpoint)
    names = [name for name in (f"{kind}.{ranks.rank}" for kind in _generator_states()) if name in stored]
    states = _fill({name: torch.empty(stored[name][0], dtype=torch.uint8) for name in names}, checkpoint)
    for name, state in states.items():
        torch.set_rng_state(state) if name.startswith("rng.cpu") else torch.cuda.set_rng_state(state)
