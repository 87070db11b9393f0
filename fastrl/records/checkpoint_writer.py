"""Writes checkpoints while training goes on: a save copies the state to CPU memory, a thread of each rank writes it.

Each rank writes its own rows with torch.distributed.checkpoint; the main rank adds the model as a Hugging Face folder,
the state, the checksums, and renames the draft. The thread's collectives have a gloo group of their own, so that they
never meet those of training.

Memory: from its first save on, every rank keeps one copy of its part of the state in CPU memory (pinned if there is a
CUDA device), which the next save reuses. While writing, the main rank holds the exported weights too, and each rank a
serialised piece of at most `FILE_BYTES`, or of one tensor's rows where those are larger.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from fastrl.process.ranks import ALONE, Ranks
from fastrl.records.checkpoints import (
    STATE,
    TRAINER,
    checksums,
    draft_path,
    final_path,
    keep_as_best,
    prune,
    rng_tensors,
    seal,
)
from fastrl.records.durable import make_folder
from fastrl.records.model_export import ModelExport

FILE_BYTES = 512 << 20


class CheckpointWriter:
    """Writes the checkpoints of one folder, one after the other. All methods are collective over all processes.

    step: of the newest checkpoint that is on disk or being written; None if there is none, or if writing it failed.
    """

    def __init__(
        self, folder: Path, keep_last: int, export: ModelExport, ranks: Ranks = ALONE, *, step: int | None = None
    ):
        self.folder, self.keep_last, self.export, self.step = folder, keep_last, export, step
        self.ranks = ranks.apart()
        options = StagingOptions(use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False)
        options.use_pinned_memory = torch.cuda.is_available()
        self._stager = DefaultStager(options)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said by every save of one process

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        state: dict,
        *,
        is_best: bool = False,
        after: Callable[[], object] | None = None,
    ) -> None:
        """Copy everything and return; `folder/step-NNNNNN` is complete after `wait()`.

        First waits for the previous save and raises its OSError. After writing, all but the newest `keep_last`
        checkpoints are deleted.
        tensors: by name, the same names on every rank: DTensors, or plain tensors that are equal on all ranks; the
        states of the random generators are added. state: what JSON can hold. is_best: `best` becomes a copy.
        after: the main rank's, called before the checkpoint gets its name: it returns when all that a resumed run will
        find done is on disk, or raises the OSError of what is not.
        """
        self.wait()
        staged = self._stager.stage(tensors | rng_tensors(self.ranks))
        self.export.stage()
        text = json.dumps({"step": step} | state, indent=1)
        self._pending = self._thread.submit(
            self.ranks.agree, lambda: self._write(final_path(self.folder, step), staged, text, is_best, after)
        )
        self.step = step

    def wait(self) -> None:
        """Return when the last save is on disk. OSError that names it if writing failed; older ones are untouched."""
        if not self._pending:
            return
        wait([self._pending])  # an interrupt here leaves it pending
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except BaseException:
            self.step = None
            raise

    def close(self) -> None:
        """End the thread when it has written its checkpoint. Only `wait` reports errors."""
        self._thread.shutdown()
        self._stager.close()

    def _write(
        self, final: Path, tensors: dict[str, Tensor], state: str, is_best: bool, after: Callable[[], object] | None
    ) -> None:
        draft = draft_path(final)
        try:
            self.ranks.on_main(lambda: _start(draft))
            sums = self._write_shards(draft, tensors)
            self.ranks.on_main(lambda: self._complete(draft, final, state, sums, after))
        except (OSError, SafetensorError) as error:
            if self.ranks.is_main:
                shutil.rmtree(draft, ignore_errors=True)
            raise OSError(f"checkpoint {final} could not be written: {error}") from error
        self.ranks.on_main(lambda: self._tidy(final, is_best))

    def _write_shards(self, draft: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Write this rank's rows of the tensors. Returns the checksums of all ranks' files."""
        folder = draft / TRAINER
        storage = dcp.HuggingFaceStorageWriter(str(folder), _file_numbers(tensors), save_distributed=True)
        storage.per_thread_copy_ahead = 0  # all is in CPU memory: no CUDA stream, of whatever device, from this thread
        try:
            is_alone = self.ranks.world_size == 1
            dcp.save(tensors, storage_writer=storage, process_group=self.ranks.group, no_dist=is_alone)
        except dcp.CheckpointException as error:
            problems = [problem for problem, _ in error.failures.values()]
            expected = all(isinstance(p, (OSError, SafetensorError)) for p in problems)
            raise (OSError if expected else RuntimeError)("; ".join(map(str, problems))) from error
        own = folder.glob(f"shard-{self.ranks.rank + 1:05d}-*")
        parts = self.ranks.gather(self.ranks.agree(lambda: checksums(draft, own)))
        return {name: value for part in parts for name, value in part.items()}

    def _complete(
        self, draft: Path, final: Path, state: str, sums: dict[str, str], after: Callable[[], object] | None
    ) -> None:
        self.export.write(draft)
        (draft / STATE).write_text(state)
        if after:
            after()
        seal(draft, final, sums)

    def _tidy(self, final: Path, is_best: bool) -> None:
        prune(self.folder, self.keep_last)
        if is_best:
            keep_as_best(final)


def _start(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    make_folder(draft.parent)
    (draft / TRAINER).mkdir(parents=True)


def _file_numbers(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The file of each tensor, from 1: as many tensors to a file as fit `FILE_BYTES` on this rank."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + size
    return numbers
