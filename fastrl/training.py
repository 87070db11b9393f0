"""A whole run: its parts, then steps, records, evaluations and checkpoints. What is checked first: `preflight`."""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from fastrl.config import TrainConfig
from fastrl.evaluation import Evaluator, save_evaluation
from fastrl.importance import choose_importance
from fastrl.interrupts import Interrupts
from fastrl.ledger.ledger import open_ledger
from fastrl.objectives import SIGN_OBJECTIVES
from fastrl.policy.model import Policy, load_model
from fastrl.policy.optimizer import MasterOptimizer
from fastrl.preflight import Preflight, check_everything
from fastrl.prompts import PromptStream
from fastrl.records import checkpoints
from fastrl.records.metrics import MetricsLog
from fastrl.records.progress import Progress
from fastrl.records.tables import pass_table
from fastrl.rollouts import Rollout
from fastrl.sampling.choose import build_sampler, ignored_settings
from fastrl.sampling.probe import LogprobProbe
from fastrl.seeds import seed_of
from fastrl.tasks.verify import make_pool
from fastrl.trainer import Trainer
from fastrl.update import Updater, token_loss


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run or resume a training run; returns its folder. ValueError or OSError for bad input, before a model is loaded.

    Ctrl-C, SIGTERM and errors save a checkpoint of the last finished step before they go on.
    """
    ready = check_everything(config, is_resumed=resume)
    with Run(ready, resume=resume) as run:
        run.loop()
    return ready.folder.path


class Run:
    """One open run: its parts, its position, and what is written after each step. A context manager."""

    def __init__(self, ready: Preflight, *, resume: bool):
        self.config, self.folder, self.task, self.tokenizer = ready.config, ready.folder, ready.task, ready.tokenizer
        self.max_sequence_tokens = ready.max_sequence_tokens
        with ExitStack() as self.stack:
            self._open(resume)
            self.stack = self.stack.pop_all()

    def _open(self, resume: bool) -> None:
        config, folder = self.config, self.folder
        self.progress = self.stack.enter_context(Progress(config.run.num_steps))
        checkpoint = checkpoints.latest_sound(folder.checkpoints, self.progress.message) if resume else None
        tensors, state = checkpoints.load(checkpoint) if checkpoint else ({}, {})
        self.completed_step: int = state.get("step", 0)
        self.position: int = state.get("position", 0)
        self.best: float = state.get("best", -math.inf)
        self.saved_step = self.completed_step if checkpoint else -1
        self.checkpoint = checkpoint
        self.has_announced = self.has_importance_choice = self.is_moving = False
        if resume:
            self.progress.message(f"resuming from {checkpoint or 'the start: there is no checkpoint yet'}")
        self._build(checkpoint, state.get("probe"))
        folder.create()
        torch.manual_seed(seed_of(config.run.seed, "torch"))
        if checkpoint:
            self.optimizer.load_state_tensors(tensors)
            checkpoints.restore_rng(tensors)
        self.sampler.publish(self.completed_step)
        log = MetricsLog(
            folder.path,
            sinks=config.run.sinks,
            config=dataclasses.asdict(config),
            resume_step=self.completed_step if resume else None,
        )
        self.log = self.stack.enter_context(log)
        self.ledger = open_ledger(
            config,
            folder.path,
            self.completed_step,
            task=self.task,
            tokenizer=self.tokenizer,
            sampler=self.sampler,
            verifier=self.trainer.verifier,
            policy=self.policy,
        )
        self.interrupts = self.stack.enter_context(Interrupts())

    def _build(self, checkpoint: Path | None, probe: dict[str, float] | None) -> None:
        """Model, sampler, optimizer, verifier, trainer, evaluator.

        The sampler comes before the optimizer: an engine that shares its weights re-points the model's parameters.
        """
        config = self.config
        source = dataclasses.replace(config.model, path=str(checkpoint)) if checkpoint else config.model
        self.model = load_model(source, self.progress.message)
        self.sampler = build_sampler(
            config.sampler,
            self.model,
            self.tokenizer,
            max_sequence_tokens=self.max_sequence_tokens,
            trust_remote_code=config.model.trust_remote_code,
            say=self.progress.message,
        )
        self.stack.callback(self.sampler.close)
        if ignored := ignored_settings(self.model):
            self.progress.message(f"the model's own generation settings are not used: {ignored}")
        loss, temperature = token_loss(config.algorithm), config.sampler.temperature
        self.policy = Policy(self.model, loss, temperature)
        self.optimizer = MasterOptimizer(self.policy, config.optimizer, config.run.num_steps)
        self.updater = Updater(
            self.policy,
            self.optimizer,
            config,
            reference=Policy(load_model(config.model, self.progress.message), loss, temperature)
            if loss.kl_coef
            else None,
            sampler_shares_weights=self.sampler.shares_weights,
        )
        verifier = self.stack.enter_context(make_pool(self.task.reward, config.task))
        self.trainer = Trainer(
            config,
            task=self.task,
            tokenizer=self.tokenizer,
            prompts=PromptStream(self.task.train, config.run.seed, self.position),
            sampler=self.sampler,
            verifier=verifier,
            policy=self.policy,
            updater=self.updater,
            probe=LogprobProbe(self.model.dtype, probe),
        )
        self.evaluator = Evaluator(
            task=self.task,
            tokenizer=self.tokenizer,
            sampler=self.sampler,
            verifier=verifier,
            policy=self.policy,
            token_budget=config.batch.micro_batch_tokens,
            max_new_tokens=config.sampler.max_new_tokens,
            correct_threshold=config.algorithm.correct_threshold,
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def loop(self) -> None:
        """All remaining steps, then the final checkpoint and evaluation."""
        try:
            if self.completed_step and not self._validation_file().exists():
                self._validate()  # the run was interrupted between this step and its validation
            self._record_ledger()
            for step in range(self.completed_step + 1, self.config.run.num_steps + 1):
                self._step(step)
            self._save_checkpoint()
            split = self.config.evaluation.split
            if self.config.evaluation.at_end and getattr(self.task, split):
                self._evaluate(split, split)
            elif self.config.evaluation.at_end:
                self.progress.message(f"no evaluation at the end: task.{split} names no problems")
        except BaseException as error:
            self._save_before(error)
            raise

    def _save_before(self, error: BaseException) -> None:
        """Keep the last finished step, unless the error came while the weights were moving."""
        if self.is_moving:
            self.progress.message(f"stopped by {error!r} in the middle of an update: the last checkpoint stays")
            return
        try:
            self.progress.message(f"stopping ({error!r}): saving a checkpoint of step {self.completed_step}")
            self._save_checkpoint()
        except OSError as second:
            self.progress.message(f"{second}; the last checkpoint stays")

    def _step(self, step: int) -> None:
        batch = self.trainer.collect(step)
        self._choose_importance()
        with self.interrupts.deferred():
            self.is_moving = True
            self.optimizer.start_step(step)
            metrics = self.trainer.learn(batch) | {"lr": self.optimizer.lr}
            self.completed_step, self.position = step, self.trainer.prompts.position
            self.is_moving = False
            metrics |= self.trainer.publish(batch)
            self.log.log(step, metrics)
            self.folder.write_rollouts(step, batch.scored)
        self._announce(batch.rollouts)
        self.progress.update(step, metrics)
        self._record_ledger(batch.scored)
        is_best = self._validate()
        if is_best or step % self.config.run.checkpoint_every == 0:
            self._save_checkpoint(is_best=is_best)

    def _validation_file(self) -> Path:
        return self.folder.evaluations / f"validation-{self.completed_step:06d}.json"

    def _validate(self) -> bool:
        """Every few steps: evaluate the validation split, log a line of its own; whether it is the best so far."""
        every = self.config.evaluation.every
        if not every or self.completed_step % every:
            return False
        evaluation = self._evaluate("validation", self._validation_file().stem)
        self.log.log(self.completed_step, evaluation_metrics(evaluation))
        value = metric_value(evaluation, self.config.run.best_metric)
        is_best = value > self.best
        self.best = max(value, self.best)
        return is_best

    def _record_ledger(self, scored: Sequence[Rollout] = ()) -> None:
        if self.ledger:
            self.ledger.record(self.completed_step, scored)

    def _choose_importance(self) -> None:
        """Once, when the probe is calibrated; what it was calibrated to is part of every checkpoint."""
        if self.has_importance_choice:
            return
        self.has_importance_choice = True
        noise = self.trainer.probe.calibration
        self.updater.importance, reason = choose_importance(self.config.algorithm.importance, noise.mean)
        if self.updater.importance != "off":
            self.progress.message(f"importance weights: {self.updater.importance} ({reason})")

    def _announce(self, rollouts: list[Rollout]) -> None:
        """Say once that a sign objective cuts fractional rewards at the threshold."""
        algorithm = self.config.algorithm
        fractional = next((r.reward for r in rollouts if r.reward not in (None, 0.0, 1.0)), None)
        if self.has_announced or fractional is None or algorithm.objective not in SIGN_OBJECTIVES:
            return
        self.has_announced = True
        self.progress.message(
            f"rewards are fractional (such as {fractional:g}); objective {algorithm.objective} only asks whether "
            f"reward >= algorithm.correct_threshold = {algorithm.correct_threshold:g}"
        )

    def _evaluate(self, split: str, name: str) -> dict:
        self.progress.message(f"evaluating {name}")
        evaluation = self.evaluator.run(getattr(self.task, split), self.config.evaluation)
        evaluation |= {"step": self.completed_step, "split": split}
        save_evaluation(evaluation, self.folder.evaluations / f"{name}.json")
        self.progress.message(pass_table({name: evaluation}))
        return evaluation

    def _save_checkpoint(self, *, is_best: bool = False) -> None:
        """Write the state after `completed_step`, unless that is on disk already; keep the last few and the best."""
        if self.saved_step != self.completed_step:
            state = {"position": self.position, "probe": self.trainer.probe.state()}
            if math.isfinite(self.best):
                state["best"] = self.best
            self.checkpoint = checkpoints.save(
                self.folder.checkpoints,
                self.completed_step,
                save_model=self._save_model,
                tensors=self.optimizer.state_tensors() | checkpoints.rng_tensors(),
                state=state,
            )
            self.saved_step = self.completed_step
            checkpoints.prune(self.folder.checkpoints, self.config.run.keep_last)
        if is_best:
            checkpoints.keep_as_best(self.checkpoint)

    def _save_model(self, path: Path) -> None:
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


def metric_value(evaluation: dict, name: str) -> float:
    """The value of one of `best_metric_names` in an evaluation."""
    key, _, k = name.partition("/")
    return evaluation[key][k]["mean"] if k else evaluation[key]


def evaluation_metrics(evaluation: dict) -> dict[str, float]:
    """The evaluation's headline numbers under the names of the metrics log."""
    curves = {f"eval/pass_at_{k}": v["mean"] for k, v in evaluation["pass_at_k"].items()}
    scalars = ("mean_length", "mean_token_entropy", "distinct_answers", "truncated_share")
    return curves | {f"eval/{name}": evaluation[name] for name in scalars}
