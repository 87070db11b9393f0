"""A whole run: steps, records, evaluations and checkpoints. What is checked first: `preflight`; its parts: `parts`."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from fastrl.config.schema import TrainConfig
from fastrl.evaluation.results import load_evaluation, metric_value, named_measures, reward_text
from fastrl.learning.importance import choose_importance
from fastrl.learning.objectives import SIGN_OBJECTIVES
from fastrl.ledger.ledger import open_ledger
from fastrl.policy.loading import resolve_device
from fastrl.process.interrupts import Interrupts
from fastrl.process.memory import memory_metrics
from fastrl.process.ranks import ALONE, Ranks, joined
from fastrl.process.seeds import seed_of
from fastrl.process.watchdog import Watchdog, alive
from fastrl.records import checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.model_export import ModelExport
from fastrl.records.progress import open_progress
from fastrl.records.tables import measure_table, pass_table
from fastrl.rollouts import Rollouts
from fastrl.run.callbacks import Answer, Callback, Callbacks, StepEnd
from fastrl.run.divergence import DivergedError, Divergence
from fastrl.run.parts import build_parts
from fastrl.run.preflight import Preflight, check_everything
from fastrl.run.records import Records
from fastrl.run.resumption import Beginning, resumption
from fastrl.tasks.given import Given, with_given
from fastrl.watch.report import write_report

NOTHING_RIGHT = 5  # steps in a row without a right completion, after which it is said


def train(
    config: TrainConfig,
    *,
    reward: Given | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    callbacks: Sequence[Callback | Callable[[StepEnd], Answer]] = (),
) -> Path:
    """Run or resume a training run; returns its folder. ValueError or OSError for bad input, before a model is loaded.

    reward: a function, an environment class, or several functions (`tasks.given`), instead of task.name; a run that was
    started with it needs it again when it is resumed.
    accept_changes: resume although data, reward, tokenizer or base weights are not those of the checkpoint.
    callbacks: what hears of steps, evaluations, checkpoints and the end, and may stop the run (see `callbacks`).

    Ctrl-C, SIGTERM and errors save a checkpoint of the last finished step before they go on. Under torchrun every
    process calls this; a signal stops all of them after the same step (torchrun kills those that take longer than its
    --shutdown-timeout), and an error of one leaves the last checkpoint.
    """
    device = resolve_device(config.model.device)
    task, given = with_given(config.task, reward)
    config = replace(config, task=task)
    with joined(device, needs_group=config.optimizer.offload) as ranks:
        size, is_main = ranks.world_size, ranks.is_main
        ready = ranks.agree(
            lambda: check_everything(config, is_resumed=resume, num_ranks=size, is_main=is_main, given=given)
        )
        told = Callbacks(callbacks, ranks)
        with Run(ready, ranks, told, resume=resume, accept_changes=accept_changes) as run:
            run.loop()
    return ready.folder.path


class Run:
    """One open run: its parts, its position, and what it writes. A context manager."""

    def __init__(
        self,
        ready: Preflight,
        ranks: Ranks = ALONE,
        callbacks: Callbacks | None = None,
        *,
        resume: bool,
        accept_changes: bool = False,
    ):
        self.ranks, self.inputs, self.callbacks = ranks, ready.inputs, callbacks or Callbacks()
        self.config, self.folder, self.task = ready.config, ready.folder, ready.task
        with ExitStack() as self.stack:
            self.stack.callback(self.folder.close)
            self._open(ready, resume, accept_changes)
            self.stack = self.stack.pop_all()

    def _open(self, ready: Preflight, resume: bool, accept_changes: bool) -> None:
        config = self.config
        self.stack.enter_context(Watchdog(config.run.watchdog_s))
        self.divergence = Divergence(config.run.max_nonfinite_steps)
        progress = open_progress(config.run.num_steps, is_silent=not self.ranks.is_main)
        self.progress = self.stack.enter_context(progress)
        say = self.progress.message
        begin = resumption(ready, self.ranks, say, accepts_changes=accept_changes) if resume else Beginning()
        checkpoint, state = begin.checkpoint, begin.state
        self.completed_step: int = begin.step
        self.position: int = state.get("position", 0)
        self.best: float = state.get("best", -math.inf)
        self.best_step: int | None = state.get("best_step")
        self.has_announced = self.has_importance_choice = self.is_moving = False
        self.num_nothing_right = 0  # steps in a row
        self.parts = build_parts(ready, self.ranks, begin, self.progress, self.stack)
        torch.manual_seed(seed_of(config.run.seed, "torch"))
        if checkpoint:
            states = self.parts.states
            states.load_state_tensors(checkpoints.load_tensors(checkpoint, states.empty_state))
            checkpoints.restore_rng(checkpoint, self.ranks)
        self.writer = self._open_writer(is_resumed=checkpoint is not None)
        self.stack.callback(self.writer.close)
        self.parts.sampler.publish(self.completed_step)
        self.records: Records | None = None
        if self.ranks.is_main:
            resume_step = self.completed_step if resume else None
            self.records = Records(self.folder, config, self.parts.arena, say, resume_step=resume_step)
            self.stack.callback(self.records.close)
        self.ledger = open_ledger(config, self.folder.path, self.completed_step, self.parts.evaluator.arena)
        self.interrupts = self.stack.enter_context(Interrupts(is_cooperative=self.ranks.world_size > 1))

    def _open_writer(self, *, is_resumed: bool) -> CheckpointWriter:
        policy = self.parts.policy
        export = ModelExport(policy.model, self.parts.arena.tokenizer, policy.dtype, self.ranks)
        step, keep_last = self.completed_step if is_resumed else None, self.config.run.keep_last
        return CheckpointWriter(self.folder.checkpoints, keep_last, export, self.ranks, step=step)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        alive("close")
        self.stack.close()

    def loop(self) -> None:
        """All remaining steps, then the final checkpoint and evaluation."""
        try:
            self._catch_up()
            self._record_ledger()
            for step in range(self.completed_step + 1, self.config.run.num_steps + 1):
                self._step(step)
                if self.callbacks.has_stopped:
                    self.progress.message(f"a callback stopped the run after step {step}")
                    break
            self._checkpoint()
            split = self.config.evaluation.split
            if self.config.evaluation.at_end and getattr(self.task, split):
                self._evaluate(split, split)
            elif self.config.evaluation.at_end:
                self.progress.message(f"no evaluation at the end: task.{split} names no problems")
            self.writer.wait()
            self._finish_records()
            self._write_report()
            self.callbacks.end(self.folder.path)
        except BaseException as error:
            self._save_before(error)
            raise

    def _catch_up(self) -> None:
        """What an interrupt or a kill left out after the last finished step: its validation, the copy of the best."""
        if self.completed_step:
            written = self.ranks.on_main(self._written_value)
            if written is None:
                self._validate()
            else:
                self._take_value(written)
        if self.best_step is not None:
            best = checkpoints.final_path(self.folder.checkpoints, self.best_step)
            self.ranks.on_main(lambda: checkpoints.repair_best(best))

    def _written_value(self) -> float | None:
        """`best_metric` of the last finished step's validation; None where it was not validated."""
        if not self._validation_file().exists():
            return None
        try:
            return metric_value(load_evaluation(self._validation_file()), self.config.run.best_metric)
        except KeyError:
            return -math.inf  # evaluation.num_samples was too small for this metric, when it was not asked for

    def _save_before(self, error: BaseException) -> None:
        """Keep the last finished step, unless the error came while the weights were moving."""
        actions = [self._finish_records, self.writer.wait]
        if self.is_moving:
            self.progress.message(f"stopped by {error!r} in the middle of an update: the last checkpoint stays")
        elif self.records and self.records.has_failed:
            self.progress.message(f"stopped by {error!r}: no checkpoint without its records, the last one stays")
        elif self.ranks.world_size > 1 and not isinstance(error, (KeyboardInterrupt, DivergedError)):
            return  # the other ranks may not come to a common checkpoint
        else:
            self.progress.message(f"stopping ({error!r}): saving a checkpoint of step {self.completed_step}")
            actions += [self._save_checkpoint, self.writer.wait, self._write_report]
        for action in actions:
            try:
                action()
            except OSError as second:
                self.progress.message(f"{second}; the last checkpoint stays")

    def _step(self, step: int) -> None:
        if self.records:
            self.records.check()
        trainer = self.parts.trainer
        batch = trainer.collect(step)
        self._choose_importance()
        if self.ledger:
            self.ledger.before_update(step, batch.scored)
        with self.interrupts.deferred():
            self.is_moving = True
            self.parts.states.start_step(step)
            metrics = trainer.learn(batch) | {"lr": self.parts.optimizer.lr}
            self.completed_step, self.position = step, trainer.prompts.position
            self.is_moving = False
            batch = trainer.rescored(batch)
            metrics |= trainer.publish(batch) | memory_metrics(self.parts.policy.device)
            if self.records:
                self.records.step(batch, metrics)
        self._announce(batch.rollouts)
        self._announce_nothing_right(metrics)
        self.progress.update(step, metrics)
        self.ranks.agree(lambda: self.divergence.check(step, metrics))
        self._record_ledger(batch.scored)
        arena = self.parts.arena
        self.callbacks.step(StepEnd(step, metrics, batch.problems, batch.rollouts, arena.tokenizer, arena.end_ids))
        self._validate()
        if self.best_step == step or step % self.config.run.checkpoint_every == 0:
            self._checkpoint()
        self._stop_together()

    def _stop_together(self) -> None:
        """Several ranks: a signal reaches them at different moments; all stop after the same step."""
        if any(self.ranks.gather(self.interrupts.is_pending)):
            raise KeyboardInterrupt

    def _validation_file(self) -> Path:
        return self.folder.evaluations / f"validation-{self.completed_step:06d}.json"

    def _validate(self) -> None:
        """Every few steps: evaluate the validation split, log a line of its own, note whether it is the best so far."""
        every = self.config.evaluation.every
        if not every or self.completed_step % every:
            return
        evaluation = self._evaluate("validation", self._validation_file().stem, in_metrics=True)
        self._take_value(metric_value(evaluation, self.config.run.best_metric))

    def _take_value(self, value: float) -> None:
        if value > self.best:
            self.best, self.best_step = value, self.completed_step

    def _record_ledger(self, scored: Rollouts | None = None) -> None:
        if self.ledger and (row := self.ledger.line(self.completed_step, scored)):
            self.records.line(row, self.ledger.path)

    def _choose_importance(self) -> None:
        """Once, when the probe is calibrated; what it was calibrated to is part of every checkpoint."""
        if self.has_importance_choice:
            return
        self.has_importance_choice = True
        noise = self.parts.trainer.probe.calibration
        mode, reason = choose_importance(self.config.algorithm.importance.kind, noise.mean)
        self.parts.updater.importance_mode = mode
        if mode != "off":
            self.progress.message(f"importance weights: {mode} ({reason})")

    def _announce(self, rollouts: Rollouts) -> None:
        """Say once that a sign objective cuts fractional rewards at the threshold."""
        algorithm = self.config.algorithm
        rewards = rollouts.rewards_R.tolist()
        fractional = next((r for r in rewards if r not in (-1.0, 0.0, 1.0) and not math.isnan(r)), None)
        if self.has_announced or fractional is None or algorithm.objective not in SIGN_OBJECTIVES:
            return
        self.has_announced = True
        self.progress.message(
            f"rewards are more than right and wrong (such as {fractional:g}); objective {algorithm.objective} only "
            f"asks whether reward >= algorithm.correct_threshold = {algorithm.correct_threshold:g}"
        )

    def _announce_nothing_right(self, metrics: dict) -> None:
        """Say once that the reward finds nothing right: a sign objective would go on to penalise whatever is drawn."""
        self.num_nothing_right = self.num_nothing_right + 1 if metrics["reward/correct_share"] == 0 else 0
        if self.num_nothing_right == NOTHING_RIGHT:
            self.progress.message(
                f"every completion of {NOTHING_RIGHT} steps was wrong (reward < algorithm.correct_threshold = "
                f"{self.config.algorithm.correct_threshold:g}): look at rollouts/ whether the reward knows what is "
                "right"
            )

    def _evaluate(self, split: str, name: str, *, in_metrics: bool = False) -> dict:
        alive(f"evaluate {name}")
        self.progress.message(f"evaluating {name}")
        evaluation = self.parts.evaluator.run(getattr(self.task, split), self.config.evaluation)
        evaluation |= {"step": self.completed_step, "split": split}
        if self.records:
            self.records.evaluation(evaluation, self.folder.evaluations / f"{name}.json", in_metrics=in_metrics)
        said = reward_text(evaluation) + measure_table(named_measures(evaluation))
        self.progress.message(pass_table({name: evaluation}) + said)
        self.callbacks.evaluation(name, evaluation)
        return evaluation

    def _checkpoint(self) -> None:
        """Save, and tell those who hear of checkpoints when it is on disk."""
        if self.writer.step == self.completed_step:
            return
        self._save_checkpoint()
        if self.callbacks.hear_checkpoints:
            self.writer.wait()
            self.callbacks.checkpoint(
                self.completed_step, checkpoints.final_path(self.folder.checkpoints, self.completed_step)
            )

    def _save_checkpoint(self) -> None:
        """Start writing the state after `completed_step`, unless that has been done; `writer.wait` is its end."""
        if self.writer.step == self.completed_step:
            return
        alive("checkpoint")
        state = {"position": self.position, "probe": self.parts.trainer.probe.state(), "inputs": self.inputs}
        if self.best_step is not None:
            state |= {"best": self.best, "best_step": self.best_step}
        is_best = self.best_step == self.completed_step
        after = self.records.fence() if self.records else None
        tensors = self.parts.states.state_tensors()
        self.writer.save(self.completed_step, tensors, state, is_best=is_best, after=after)

    def _finish_records(self) -> None:
        """Return when everything but checkpoints is on disk. OSError if a record could not be written."""
        if self.records:
            self.records.wait()

    def _write_report(self) -> None:
        """The run as one page, report.html, of what is on disk by then; without it the run is as whole as with it."""
        alive("report")
        if not self.records:
            return
        try:
            write_report(self.folder.path)
        except Exception as error:  # of any kind: all that the run made is on disk by now
            self.progress.message(
                f"report.html could not be written ({error!r}); all else is there: fastrl watch "
                f"{self.folder.path} --report writes it again"
            )
