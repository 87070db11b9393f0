"""One training step, from prompts to moved weights. Everything else (files, signals, schedules) is in `training`."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastrl.config.algorithm import chosen
from fastrl.config.schema import TrainConfig
from fastrl.learners.protocol import Learner
from fastrl.learning.factors import FACTORS
from fastrl.learning.objectives import OBJECTIVES, has_contrast, objective_credits
from fastrl.learning.refiners import REFINERS
from fastrl.learning.signals import SIGNALS
from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.process.seeds import seed_of
from fastrl.process.stopwatch import Stopwatch
from fastrl.prompts.stream import PromptStream
from fastrl.records.step_metrics import part_metrics, rollout_metrics, verifier_warning
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena
from fastrl.sampling.embedded import embedded_sampler
from fastrl.sampling.probe import LogprobProbe
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, Task
from fastrl.update import Updater


@dataclass(frozen=True)
class Batch:
    """A step's rollouts, in the order of their problems, the fixed random sample of them that was scored, what was odd.

    groups_R of both is the index of the problem.
    """

    step: int
    problems: list[Problem]
    rollouts: Rollouts
    scored: Rollouts
    warning: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # of the refiner


@dataclass(frozen=True)
class StepTools:
    """The tools of signals and the refiner in one step (see `learning.tools.Tools`). settings: of training.

    max_drawn_tokens: prompt and completion of the longest sequence that the sampler takes. batch_size: sequences that a
    second model writes at once.
    """

    arena: Arena
    settings: SamplingSettings
    token_budget: int
    max_sequence_tokens: int | None
    seed: int
    step: int
    max_drawn_tokens: int = 1 << 30
    batch_size: int = 512

    @property
    def task(self) -> Task:
        return self.arena.task

    @property
    def max_prompt_tokens(self) -> int:
        return self.max_drawn_tokens - self.settings.max_new_tokens

    def score(
        self, rollouts: Rollouts, *, model: str = "policy", prompts: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        policy = self.arena.policy if model == "policy" else self.arena.models[model]
        return self._scored(policy, rollouts if prompts is None else rollouts.behind(prompts))[0]

    def entropies(self, rollouts: Rollouts) -> np.ndarray:
        return self._scored(self.arena.policy, rollouts)[1]

    def _scored(self, policy: Policy, rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
        longest = int((rollouts.prompt_lengths_R + rollouts.completion_lengths_R).max(initial=0))
        return score(policy, rollouts, max(self.token_budget, longest))

    def draw(
        self, problems: Sequence[Problem], num_samples: int, *, prompts: Sequence[Sequence[int]] | None = None
    ) -> Rollouts:
        seeds = [seed_of(self.seed, i) for i in range(len(problems))]
        settings = replace(self.settings, num_samples=num_samples)
        return self.arena.draw(problems, settings, seeds, prompts=prompts)

    def write(self, prompts: Sequence[Sequence[int]], *, model: str = "policy") -> list[str]:
        arena = self.arena
        if model != "policy":
            writer = embedded_sampler(arena.models[model], arena.tokenizer, self.batch_size)
            arena = replace(arena, sampler=writer)
        return arena.write(prompts, self.settings, [seed_of(self.seed, "write", i) for i in range(len(prompts))])

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        return self.arena.judge(problems, rollouts)

    def is_correct(self, rollouts: Rollouts) -> np.ndarray:
        return self.arena.correctness.are_correct(rollouts.rewards_R)

    def texts(self, rollouts: Rollouts) -> list[str]:
        return self.arena.texts(rollouts)

    def turns(self, rollouts: Rollouts) -> list[list[str]]:
        return self.arena.turns(rollouts)

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        return self.arena.prompts(problems)

    def ids(self, text: str) -> list[int]:
        return list(self.arena.tokenizer(text, add_special_tokens=False).input_ids)


class Trainer:
    """Holds the parts of a step, which is `batch = collect(n)`, `learn(batch)`, `publish(batch)`.

    A step depends on its number, the seed, the data position and the weights, on nothing else. max_sequence_tokens: the
    model's context; None: it names none. max_drawn_tokens: prompt and completion of the longest sequence that the
    sampler takes. learners: by their name, signals that learn.
    """

    def __init__(
        self,
        config: TrainConfig,
        arena: Arena,
        prompts: PromptStream,
        updater: Updater,
        probe: LogprobProbe,
        *,
        max_sequence_tokens: int | None = None,
        learners: Mapping[str, Learner] | None = None,
        max_drawn_tokens: int = 1 << 30,
    ):
        self.config, self.arena, self.prompts, self.updater, self.probe = config, arena, prompts, updater, probe
        self.objective = chosen(config.algorithm, OBJECTIVES, config.algorithm.objective)
        self.overlong = config.algorithm.overlong
        self.settings = SamplingSettings(
            num_samples=config.batch.rollouts_per_prompt,
            max_new_tokens=config.sampler.max_new_tokens,
            temperature=config.sampler.temperature,
        )
        self.learners = learners or {}
        plain = {n: chosen(config.algorithm, SIGNALS, n) for n in config.algorithm.signals if n not in self.learners}
        self.signals = [(plain | self.learners)[name] for name in config.algorithm.signals]
        self.factors = [chosen(config.algorithm, FACTORS, name) for name in config.algorithm.factors]
        self.refiner = chosen(config.algorithm, REFINERS, config.algorithm.refiner)
        self.max_sequence_tokens, self.max_drawn_tokens = max_sequence_tokens, max_drawn_tokens
        self.watch = Stopwatch(arena.policy.device)

    def collect(self, step: int) -> Batch:
        """Sample, verify, weigh, score: everything of a step that leaves the weights alone."""
        self.watch = Stopwatch(self.arena.policy.device)
        with self.watch("freshness"):
            self.arena.sampler.prove_fresh(step - 1)
        problems, rollouts = self.draw(step)
        with self.watch("refine"):
            rollouts, metrics = self.refiner(rollouts, problems, self.tools(step, "refine"))
        rollouts = self._shaped(rollouts, step - 1)
        with self.watch("signal"):
            rollouts = self.credited(step, problems, rollouts)
        scored = self.scored(step, rollouts)
        return Batch(step, problems, rollouts, scored, self.probe.check(scored), metrics)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Move the weights; returns the metrics of the update."""
        self.arena.sampler.pause()
        with self.watch("train"):
            metrics = self.updater.run(batch.rollouts)
        warnings = [batch.warning, verifier_warning(batch.rollouts), metrics.pop("warnings", "")]
        for name, learner in self.learners.items():
            with self.watch(name):
                metrics |= learner.learn()
            warnings.append(metrics.pop("warnings", ""))
        return metrics | ({"warnings": "; ".join(filter(None, warnings))} if any(warnings) else {})

    def rescored(self, batch: Batch) -> Batch:
        """With the scored rollouts' log-probs after the update, every `run.rescored_every` steps."""
        every = self.config.run.rescored_every
        if not every or batch.step % every:
            return batch
        with self.watch("rescore"):
            logprobs_N, _ = score(self.arena.policy, batch.scored, self.config.batch.micro_batch_tokens)
        return replace(batch, scored=replace(batch.scored, updated_logprobs_N=logprobs_N))

    def publish(self, batch: Batch) -> dict[str, float]:
        """Hand the moved weights to the sampler; returns the metrics of the step besides those of the update."""
        with self.watch("publish"):
            num_bytes = self.arena.sampler.publish(batch.step)
        metrics = rollout_metrics(batch.rollouts, batch.scored, self.arena.correctness) | {"publish/bytes": num_bytes}
        metrics |= part_metrics(batch.rollouts, self.arena.task.parts)
        metrics |= batch.metrics | self._measures(batch.rollouts)
        metrics["throughput/tokens_per_s"] = batch.rollouts.num_tokens / sum(self.watch.times.values())
        return metrics | {f"time/{phase}_s": seconds for phase, seconds in self.watch.times.items()}

    def _measures(self, rollouts: Rollouts) -> dict[str, float]:
        """What the task makes of the reasons of all rollouts that have a verdict."""
        reasons = rollouts.reasons_R[~np.isnan(rollouts.rewards_R)].tolist()
        return {f"task/{name}": value for name, value in self.arena.task.measured(reasons).items()}

    def draw(self, step: int) -> tuple[list[Problem], Rollouts]:
        """One batch of groups; with dynamic sampling, groups of equal rewards are replaced for a number of rounds."""
        num_prompts = self.config.batch.prompts_per_step
        problems, rollouts = self._draw(step, 0, num_prompts)
        for attempt in range(1, self.config.algorithm.dynamic_sampling_rounds + 1):
            problems, rollouts = with_contrast(problems, rollouts)
            if len(problems) == num_prompts:
                break
            more_problems, more = self._draw(step, attempt, num_prompts - len(problems))
            rollouts = Rollouts.concat([rollouts, replace(more, groups_R=more.groups_R + len(problems))])
            problems = problems + more_problems
        return problems, rollouts

    def _draw(self, step: int, attempt: int, num_prompts: int) -> tuple[list[Problem], Rollouts]:
        problems = self.prompts.take(num_prompts)
        seeds = [seed_of(self.config.run.seed, step, attempt, i) for i in range(num_prompts)]
        return problems, self.arena.draw(problems, self.settings, seeds, self.watch)

    def _shaped(self, rollouts: Rollouts, weight_version: int) -> Rollouts:
        """What training makes of truncation and length, beyond what a verdict counts as."""
        penalties_R = self.overlong(rollouts.completion_lengths_R, self.settings.max_new_tokens)
        penalties_R = np.where(np.isnan(rollouts.rewards_R), 0.0, penalties_R)
        is_masked_R = rollouts.is_truncated_R & (self.arena.correctness.truncated == "mask")
        is_masked_R &= ~np.isnan(rollouts.rewards_R)
        return replace(
            rollouts,
            penalties_R=penalties_R,
            loss_mask_N=rollouts.loss_mask_N & ~rollouts.by_token(is_masked_R),
            weight_versions_R=np.full(len(rollouts), weight_version, dtype=np.int32),
        )

    def tools(self, step: int, use: str) -> StepTools:
        """What the refiner or the signals of a step work with; random numbers are by use."""
        return StepTools(
            self.arena,
            self.settings,
            self.config.batch.micro_batch_tokens,
            self.max_sequence_tokens,
            seed_of(self.config.run.seed, step, use),
            step,
            self.max_drawn_tokens,
            self.config.sampler.batch_size,
        )

    def credited(self, step: int, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """With the credit of each token: the objective's and every signal's, times every factor.

        Tokens that the loss may not use get 0.
        """
        tools = self.tools(step, "signals")
        credits_N = objective_credits(self.objective, rollouts, tools.is_correct(rollouts))
        for signal in self.signals:
            credits_N = credits_N + signal(rollouts, problems, tools)
        for factor in self.factors:
            credits_N = credits_N * factor(replace(rollouts, credits_N=credits_N), tools)
        return replace(rollouts, credits_N=np.where(rollouts.loss_mask_N, credits_N, 0.0).astype(np.float32))

    def scored(self, step: int, rollouts: Rollouts) -> Rollouts:
        """A fixed random sample of all rollouts with the trainer's log-probs and entropies, before the update."""
        count = min(self.config.run.scored_rollouts, len(rollouts))
        indices = random.Random(seed_of(self.config.run.seed, step, "scored")).sample(range(len(rollouts)), count)
        sample = rollouts.take(indices)
        with self.watch("score"):
            logprobs_N, entropy_N = score(self.arena.policy, sample, self.config.batch.micro_batch_tokens)
        return replace(sample, policy_logprobs_N=logprobs_N, entropy_N=entropy_N)


def with_contrast(problems: Sequence[Problem], rollouts: Rollouts) -> tuple[list[Problem], Rollouts]:
    """The groups of which not all verdicts are equal, missing ones aside; all of one size. Counted anew from 0."""
    is_kept_P = has_contrast(rollouts.rewards_R.reshape(len(problems), -1))
    kept = rollouts.take(is_kept_P[rollouts.groups_R])
    number_P = np.cumsum(is_kept_P, dtype=np.int32) - 1
    return [p for p, keep in zip(problems, is_kept_P, strict=True) if keep], replace(
        kept, groups_R=number_P[kept.groups_R]
    )
