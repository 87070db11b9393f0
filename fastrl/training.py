"""A whole run: everything is checked before the model is loaded, then steps, records, evaluations and checkpoints."""

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from fastrl.config import TrainConfig
from fastrl.config_files import check_train
from fastrl.evaluation import Evaluator, save_evaluation
from fastrl.interrupts import Interrupts
from fastrl.objectives import SIGN_OBJECTIVES
from fastrl.policy.model import Policy, load_model, load_tokenizer, max_context
from fastrl.policy.optimizer import MasterOptimizer
from fastrl.prompts import PromptStream, prompt_ids
from fastrl.records import checkpoints
from fastrl.records.metrics import MetricsLog, check_sinks
from fastrl.records.progress import Progress
from fastrl.records.run_folder import RunFolder
from fastrl.records.tables import pass_table
from fastrl.rollouts import Rollout
from fastrl.sampling.choose import build_sampler, ignored_settings
from fastrl.seeds import seed_of
from fastrl.tasks import Task, load_task
from fastrl.tasks.pool import VerifierError
from fastrl.tasks.verify import check_reward, make_pool
from fastrl.trainer import Trainer
from fastrl.update import Updater, token_loss


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run or resume a training run; returns its folder. ValueError or FileNotFoundError for bad input, early.

    Ctrl-C and SIGTERM save a checkpoint of the last finished step and raise KeyboardInterrupt.
    """
    config = check_train(config)
    check_sinks(config.run.sinks)
    task = load_task(config.task)
    check_reward(task, config.task)
    tokenizer = load_tokenizer(config.model)
    check_lengths(config, task, tokenizer)
    if config.evaluation.every and not task.validation:
        raise ValueError("evaluation.every needs validation problems: set task.validation, or evaluation.every = 0")
    folder = RunFolder(config, is_resumed=resume)
    with Run(config, folder, task, tokenizer, resume=resume) as run:
        run.loop()
    return folder.path


def check_lengths(config: TrainConfig, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError when the longest prompt and a full completion exceed the micro-batch budget or the model's context."""
    longest = max((prompt_ids(task, p, tokenizer) for p in task.train), key=len)
    total = len(longest) + config.sampler.max_new_tokens
    limits = {"batch.micro_batch_tokens": config.batch.micro_batch_tokens}
    if context := max_context(config.model):
        limits["the model's context"] = context
    for name, limit in limits.items():
        if total > limit:
            raise ValueError(
                f"the longest training prompt ({len(longest)} tokens) and sampler.max_new_tokens="
                f"{config.sampler.max_new_tokens} make {total} tokens, more than {name}={limit}"
            )


class Run:
    """One open run: its parts, its position, and what is written after each step. A context manager."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        resume: bool,
    ):
        self.config, self.folder, self.task, self.tokenizer = config, folder, task, tokenizer
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
        self.has_announced = False
        if resume:
            self.progress.message(f"resuming from {checkpoint or 'the start: there is no checkpoint yet'}")
        self._build(checkpoint)
        folder.create()
        torch.manual_seed(seed_of(config.run.seed, "torch"))
        if checkpoint:
            self.optimizer.load_state_tensors(tensors)
            checkpoints.restore_rng(tensors)
        log = MetricsLog(
            folder.path,
            sinks=config.run.sinks,
            config=dataclasses.asdict(config),
            resume_step=self.completed_step if resume else None,
        )
        self.log = self.stack.enter_context(log)
        self.interrupts = self.stack.enter_context(Interrupts())

    def _build(self, checkpoint: Path | None) -> None:
        """Model, optimizer, sampler, verifier, trainer, evaluator."""
        config = self.config
        source = dataclasses.replace(config.model, path=str(checkpoint)) if checkpoint else config.model
        self.model = load_model(source)
        loss, temperature = token_loss(config.algorithm), config.sampler.temperature
        self.policy = Policy(self.model, loss, temperature)
        self.optimizer = MasterOptimizer(self.policy, config.optimizer, config.run.num_steps)
        reference = Policy(load_model(config.model), loss, temperature) if loss.kl_coef else None
        sampler = build_sampler(config.sampler, self.model, self.tokenizer)
        if ignored := ignored_settings(self.model):
            self.progress.message(f"the model's own generation settings are not used: {ignored}")
        verifier = self.stack.enter_context(make_pool(self.task.reward, config.task))
        self.trainer = Trainer(
            config,
            task=self.task,
            tokenizer=self.tokenizer,
            prompts=PromptStream(self.task.train, config.run.seed, self.position),
            sampler=sampler,
            verifier=verifier,
            policy=self.policy,
            updater=Updater(
                self.policy,
                self.optimizer,
                config,
                reference=reference,
                sampler_shares_weights=sampler.shares_weights,
            ),
        )
        self.evaluator = Evaluator(
            task=self.task,
            tokenizer=self.tokenizer,
            sampler=sampler,
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
            for step in range(self.completed_step + 1, self.config.run.num_steps + 1):
                self._step(step)
            self._save_checkpoint()
            split = self.config.evaluation.split
            if self.config.evaluation.at_end and getattr(self.task, split):
                self._evaluate(split, split)
            elif self.config.evaluation.at_end:
                self.progress.message(f"no evaluation at the end: task.{split} names no problems")
        except (KeyboardInterrupt, VerifierError):
            self.progress.message(f"stopping: saving a checkpoint of step {self.completed_step}")
            self._save_checkpoint()
            raise

    def _step(self, step: int) -> None:
        batch = self.trainer.collect(step)
        with self.interrupts.deferred():
            self.optimizer.start_step(step)
            metrics = self.trainer.learn(batch) | {"lr": self.optimizer.lr}
            self.completed_step, self.position = step, self.trainer.prompts.position
            self.folder.write_rollouts(step, batch.scored)
        self._announce(batch.rollouts)
        is_best = False
        try:
            if self.config.evaluation.every and step % self.config.evaluation.every == 0:
                evaluation = self._evaluate("validation", f"validation-{step:06d}")
                metrics |= evaluation_metrics(evaluation)
                is_best = self._is_best(evaluation)
        finally:  # an interrupted evaluation does not cost the step its line
            self.log.log(step, metrics)
            self.progress.update(step, metrics)
        if is_best or step % self.config.run.checkpoint_every == 0:
            self._save_checkpoint(is_best=is_best)

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

    def _is_best(self, evaluation: dict) -> bool:
        value = metric_value(evaluation, self.config.run.best_metric)
        is_best = value > self.best
        self.best = max(value, self.best)
        return is_best

    def _save_checkpoint(self, *, is_best: bool = False) -> None:
        """Write the state after `completed_step`, unless that is on disk already; keep the last few and the best."""
        if self.saved_step != self.completed_step:
            state = {"position": self.position}
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
