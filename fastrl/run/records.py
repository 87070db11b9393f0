"""What a run writes beside its checkpoints: metrics, rollouts, evaluations, the ledger's lines. On the main rank.

A thread makes texts, JSON and gzip of it and writes them, in the order of the steps, while the next step samples and
learns. A killed run loses the records of a few steps after its last checkpoint at most, which its resumption makes
again: a checkpoint is complete only when everything up to its step is on disk (`fence`).
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

from fastrl.config.schema import TrainConfig
from fastrl.evaluation.results import evaluation_metrics, save_evaluation
from fastrl.prompts.pieces import Pieces
from fastrl.prompts.tokens import completion_texts
from fastrl.records.dropped import drop_files_after
from fastrl.records.jsonl import append_jsonl
from fastrl.records.metrics import MetricsLog
from fastrl.records.rollout_files import RolloutFiles
from fastrl.records.run_folder import RunFolder
from fastrl.records.writer_thread import WriterThread
from fastrl.sample_and_judge import Arena
from fastrl.trainer import Batch

MOST_UNWRITTEN = 4  # records whose data is held; a step makes one, and one more for a validation or a ledger's line


class Records:
    """Of one run, in the order in which its methods are called. All of them raise the OSError of an earlier record.

    resume_step: of the checkpoint that the run goes on from; None for a new run. What a caller hands over must stay as
    it is.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        arena: Arena,
        say: Callable[[str], None],
        *,
        resume_step: int | None,
    ):
        folder.create()
        if resume_step is not None:
            drop_files_after(folder.path, resume_step)
        settings = dataclasses.asdict(config)
        self._log = MetricsLog(folder.path, sinks=config.run.sinks, config=settings, resume_step=resume_step)
        self._rollouts = RolloutFiles(folder.path / "rollouts", config.run.rollouts_mib, say)
        self._tokenizer = copy.deepcopy(arena.tokenizer)  # two threads that use one may meet in its truncation settings
        self._end_ids, self._parts = arena.end_ids, arena.task.parts
        self._pieces = Pieces(self._tokenizer)
        self._thread = WriterThread("records", MOST_UNWRITTEN)
        self.check, self.wait, self.fence = self._thread.check, self._thread.wait, self._thread.fence

    @property
    def has_failed(self) -> bool:
        """Whether a record could not be written; none is written after it."""
        return self._thread.error is not None

    def step(self, batch: Batch, metrics: dict) -> None:
        """The line of a finished step and the rollouts of it that were scored."""

        def write() -> None:
            self._log.log(batch.step, metrics)
            scored = batch.scored
            texts = completion_texts(self._tokenizer, scored, end_ids=self._end_ids)
            pieces = [self._pieces.of(scored.completion(i).tolist()) for i in range(len(scored))]
            self._rollouts.write_step(batch.step, scored, batch.problems, texts, pieces, self._parts)

        self._later(f"the records of step {batch.step}", write)

    def evaluation(self, evaluation: dict, path: Path, *, in_metrics: bool) -> None:
        """The file of an evaluation; in_metrics: and a line with its headline numbers."""

        def write() -> None:
            save_evaluation(evaluation, path)
            if in_metrics:
                self._log.log(evaluation["step"], evaluation_metrics(evaluation))

        self._later(f"the evaluation {path}", write)

    def line(self, row: dict, path: Path) -> None:
        """One more line of a JSON-lines file."""
        self._later(f"a line of {path}", lambda: append_jsonl(path, [row]))

    def _later(self, what: str, write: Callable[[], object]) -> None:
        def named() -> None:
            try:
                write()
            except OSError as error:
                raise OSError(f"{what} could not be written: {error}") from error

        self._thread.write(named)

    def close(self) -> None:
        """Return when everything is written and the sinks are closed. Only the other methods report errors."""
        self._thread.close()
        self._log.close()
