"""A whole run: its parts, then steps, records, evaluations and checkpoints. What is checked first: `preflight`."""

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path

import torch

from fastrl.config.schema import TrainConfig
from fastrl.evaluation.evaluator import Evaluator
from fastrl.evaluation.results import (
    evaluation_metrics,
    load_evaluation,
    metric_value,
    named_measures,
    save_evaluation,
)
from fastrl.kernels import choose
from fastrl.learning.importance import choose_importance
from fastrl.learning.objectives import SIGN_OBJECTIVES
from fastrl.ledger.ledger import open_ledger
from fastrl.policy.loading import resolve_device
from fastrl.policy.optimizer.bytes import training_bytes
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.roles import reference_policy, second_policies, trained_policy
from fastrl.process.interrupts import Interrupts
from fastrl.process.ranks import ALONE, Ranks, joined
from fastrl.process.seeds import seed_of
from fastrl.process.watchdog import Watchdog, alive
from fastrl.prompts.stream import PromptStream
from fastrl.prompts.tokens import completion_texts
from fastrl.records import checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.metrics import MetricsLog
from fastrl.records.model_export import ModelExport
from fastrl.records.progress import open_progress
from fastrl.records.rollout_files import RolloutFiles
from fastrl.records.tables import measure_table, pass_table
from fastrl.rollouts import Rollouts
from fastrl.run.divergence import DivergedError, Divergence
from fastrl.run.preflight import Preflight, check_everything
from fastrl.run.resumption import Beginning, resumption
from fastrl.sample_and_judge import Arena
from fastrl.sampling.choose import build_sampler, ignored_settings
from fastrl.sampling.probe import LogprobProbe
from fastrl.sampling.protocol import SamplerParts
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.reward_rules import trained_by
from fastrl.tasks.verify import make_pool
from fastrl.trainer import Trainer
from fastrl.update import Updater, token_loss


def train(config: TrainConfig, *, resume: bool = False, accept_changes: bool = False) -> Path:
    """Run or resume a training run; returns its folder. ValueError or OSError for bad input, before a model is loaded.

    accept_changes: resume although data, reward, tokenizer or base weights are not those of the checkpoint.

    Ctrl-C, SIGTERM and errors save a checkpoint of the last finished step before they go on. Under torchrun every
    process calls this; a signal stops all of them after the same step (torchrun kills those that take longer than its
    --shutdown-timeout), and an error of one leaves the last checkpoint.
    """
    device = resolve_device(config.model.device)
    with joined(device, needs_group=config.optimizer.offload) as ranks:
        size, is_main = ranks.world_size, ranks.is_main
        ready = ranks.agree(lambda: check_everything(config, is_resumed=resume, num_ranks=size, is_main=is_main))
        with Run(ready, ranks, resume=resume, accept_changes=accept_changes) as run:
            run.loop()
    return ready.folder.path


class Run:
    """One open run: its parts, its position, and what is written after each step. A context manager."""

    def __init__(self, ready: Preflight, ranks: Ranks = ALONE, *, resume: bool, accept_changes: bool = False):
        self.ranks, self.inputs = ranks, ready.inputs
        self.config, self.folder, self.task, self.base = ready.config, ready.folder, ready.task, ready.base
        self.tokenizer, self.others = ready.base.tokenizer, ready.others
        self.max_sequence_tokens = ready.max_sequence_tokens
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
        folder, say = self.folder.checkpoints, self.progress.message
        begin = resumption(ready, self.ranks, say, accepts_changes=accept_changes) if resume else Beginning()
        checkpoint, state = begin.checkpoint, begin.state
        self.completed_step: int = begin.step
        self.position: int = state.get("position", 0)
        self.best: float = state.get("best", -math.inf)
        self.best_step: int | None = state.get("best_step")
        self.has_announced = self.has_importance_choice = self.is_moving = False
        self._build(checkpoint, state.get("probe"))
        torch.manual_seed(seed_of(config.run.seed, "torch"))
        if checkpoint:
            self.optimizer.load_state_tensors(checkpoints.load_tensors(checkpoint, self.optimizer.empty_state))
            checkpoints.restore_rng(checkpoint, self.ranks)
        self.writer = CheckpointWriter(
            folder,
            config.run.keep_last,
            ModelExport(self.model, self.tokenizer, self.policy.dtype, self.ranks),
            self.ranks,
            step=self.completed_step if checkpoint else None,
        )
        self.stack.callback(self.writer.close)
        self.sampler.publish(self.completed_step)
        self.rollouts = RolloutFiles(self.folder.path / "rollouts", config.run.rollouts_mib, say)
        self.log = self.stack.enter_context(self._open_log(resume)) if self.ranks.is_main else None
        self.ledger = open_ledger(config, self.folder.path, self.completed_step, self.evaluator.arena)
        self.interrupts = self.stack.enter_context(Interrupts(is_cooperative=self.ranks.world_size > 1))

    def _open_log(self, resume: bool) -> MetricsLog:
        self.folder.create()
        return MetricsLog(
            self.folder.path,
            sinks=self.config.run.sinks,
            config=dataclasses.asdict(self.config),
            resume_step=self.completed_step if resume else None,
        )

    def _build(self, checkpoint: Path | None, probe: dict[str, float] | None) -> None:
        """Model, sampler, optimizer, verifier, trainer, evaluator.

        The sampler comes before the optimizer: an engine that shares its weights re-points the model's parameters.
        """
        config = self.config
        loss, say = token_loss(config.algorithm), self.progress.message
        self.policy = trained_policy(config, self.base, checkpoint, loss, self.ranks, say)
        self.model = self.policy.model
        surrogate, vocab = config.algorithm.kernel_surrogate, self.policy.head().weight.shape[0]
        say(f"loss: {choose('linear_policy_loss', self.policy.device, self.policy.dtype, surrogate, vocab)}")
        parts = SamplerParts(
            config.sampler,
            self.policy,
            self.tokenizer,
            self.max_sequence_tokens,
            training_bytes=training_bytes(self.model, config.optimizer, self.ranks.world_size),
            trust_remote_code=config.model.trust_remote_code,
            say=say,
        )
        self.sampler = build_sampler(parts)
        self.stack.callback(self.sampler.close)
        if ignored := ignored_settings(self.model):
            say(f"the model's own generation settings are not used: {ignored}")
        self.optimizer = build_optimizer(self.policy, config.optimizer, config.run.num_steps)
        self.updater = Updater(
            self.policy,
            self.optimizer,
            config,
            reference=reference_policy(config, self.base, self.policy, say) if loss.kl_coef else None,
            sampler_shares_weights=self.sampler.shares_weights,
        )
        task = trained_by(self.task, config.task.reward)
        verifier = self.stack.enter_context(make_pool(task.reward, config.task))
        correctness = Correctness(config.algorithm.correct_threshold, config.algorithm.truncated)
        models = second_policies(config, self.others, self.policy, say)
        self.arena = Arena(task, self.tokenizer, self.sampler, verifier, self.policy, correctness, models)
        stream = PromptStream(self.task.train, config.run.seed, self.position)
        probe = LogprobProbe(self.policy.dtype, probe)
        context = min(self.base.limits.values(), default=None)
        self.trainer = Trainer(config, self.arena, stream, self.updater, probe, max_sequence_tokens=context)
        budget, max_new_tokens = config.batch.micro_batch_tokens, config.sampler.max_new_tokens
        self.evaluator = Evaluator(self._judging_arena(), budget, max_new_tokens)

    def _judging_arena(self) -> Arena:
        """For evaluations and the ledger: the arena with the verifier, whatever reward trains."""
        if self.arena.task is self.task:
            return self.arena
        verifier = self.stack.enter_context(make_pool(self.task.reward, self.config.task))
        return dataclasses.replace(self.arena, task=self.task, verifier=verifier)

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
            self._save_checkpoint()
            split = self.config.evaluation.split
            if self.config.evaluation.at_end and getattr(self.task, split):
                self._evaluate(split, split)
            elif self.config.evaluation.at_end:
                self.progress.message(f"no evaluation at the end: task.{split} names no problems")
            self.writer.wait()
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
        actions = [self.writer.wait]
        if self.is_moving:
            self.progress.message(f"stopped by {error!r} in the middle of an update: the last checkpoint stays")
        elif self.ranks.world_size > 1 and not isinstance(error, (KeyboardInterrupt, DivergedError)):
            return  # the other ranks may not come to a common checkpoint
        else:
            self.progress.message(f"stopping ({error!r}): saving a checkpoint of step {self.completed_step}")
            actions += [self._save_checkpoint, self.writer.wait]
        for action in actions:
            try:
                action()
            except OSError as second:
                self.progress.message(f"{second}; the last checkpoint stays")

    def _step(self, step: int) -> None:
        batch = self.trainer.collect(step)
        self._choose_importance()
        if self.ledger:
            self.ledger.before_update(step, batch.scored)
        with self.interrupts.deferred():
            self.is_moving = True
            self.optimizer.start_step(step)
            metrics = self.trainer.learn(batch) | {"lr": self.optimizer.lr}
            self.completed_step, self.position = step, self.trainer.prompts.position
            self.is_moving = False
            metrics |= self.trainer.publish(batch)
            if self.ranks.is_main:
                self.log.log(step, metrics)
                texts = completion_texts(self.tokenizer, batch.scored)
                self.rollouts.write_step(step, batch.scored, batch.problems, texts)
        self._announce(batch.rollouts)
        self.progress.update(step, metrics)
        self.ranks.agree(lambda: self.divergence.check(step, metrics))
        self._record_ledger(batch.scored)
        self._validate()
        if self.best_step == step or step % self.config.run.checkpoint_every == 0:
            self._save_checkpoint()
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
        evaluation = self._evaluate("validation", self._validation_file().stem)
        if self.ranks.is_main:
            self.log.log(self.completed_step, evaluation_metrics(evaluation))
        self._take_value(metric_value(evaluation, self.config.run.best_metric))

    def _take_value(self, value: float) -> None:
        if value > self.best:
            self.best, self.best_step = value, self.completed_step

    def _record_ledger(self, scored: Rollouts | None = None) -> None:
        if self.ledger:
            self.ledger.record(self.completed_step, scored)

    def _choose_importance(self) -> None:
        """Once, when the probe is calibrated; what it was calibrated to is part of every checkpoint."""
        if self.has_importance_choice:
            return
        self.has_importance_choice = True
        noise = self.trainer.probe.calibration
        self.updater.importance_mode, reason = choose_importance(self.config.algorithm.importance.kind, noise.mean)
        if self.updater.importance_mode != "off":
            self.progress.message(f"importance weights: {self.updater.importance_mode} ({reason})")

    def _announce(self, rollouts: Rollouts) -> None:
        """Say once that a sign objective cuts fractional rewards at the threshold."""
        algorithm = self.config.algorithm
        rewards = rollouts.rewards_R.tolist()
        fractional = next((r for r in rewards if r not in (-1.0, 0.0, 1.0) and not math.isnan(r)), None)
        if self.has_announced or fractional is None or algorithm.objective not in SIGN_OBJECTIVES:
            return
        self.has_announced = True
        self.progress.message(
            f"rewards are fractional (such as {fractional:g}); objective {algorithm.objective} only asks whether "
            f"reward >= algorithm.correct_threshold = {algorithm.correct_threshold:g}"
        )

    def _evaluate(self, split: str, name: str) -> dict:
        alive(f"evaluate {name}")
        self.progress.message(f"evaluating {name}")
        evaluation = self.evaluator.run(getattr(self.task, split), self.config.evaluation)
        evaluation |= {"step": self.completed_step, "split": split}
        if self.ranks.is_main:
            save_evaluation(evaluation, self.folder.evaluations / f"{name}.json")
        self.progress.message(pass_table({name: evaluation}) + measure_table(named_measures(evaluation)))
        return evaluation

    def _save_checkpoint(self) -> None:
        """Start writing the state after `completed_step`, unless that has been done; `writer.wait` is its end."""
        if self.writer.step == self.completed_step:
            return
        alive("checkpoint")
        state = {"position": self.position, "probe": self.trainer.probe.state(), "inputs": self.inputs}
        if self.best_step is not None:
            state |= {"best": self.best, "best_step": self.best_step}
        is_best = self.best_step == self.completed_step
        self.writer.save(self.completed_step, self.optimizer.state_tensors(), state, is_best=is_best)
