"""One training step, from prompts to moved weights. Everything else (files, signals, schedules) is in `training`."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from fastrl.config import TrainConfig
from fastrl.objectives import OBJECTIVES, has_contrast, overlong_penalty
from fastrl.policy.model import Policy
from fastrl.policy.packing import spread
from fastrl.policy.scoring import score
from fastrl.prompts import PromptStream, completion_texts, prompt_ids
from fastrl.rollouts import Rollout
from fastrl.sampling.probe import LogprobProbe
from fastrl.sampling.protocol import Sampler, SamplingSettings
from fastrl.seeds import seed_of
from fastrl.step_metrics import rollout_metrics, verifier_warning
from fastrl.tasks import Problem, Task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import POOL_REASONS, VerifierPool
from fastrl.update import Updater
from fastrl.watchdog import alive


@dataclass(frozen=True)
class Batch:
    """All rollouts of a step, in prompt order, the fixed random sample of them that was scored, and what was odd."""

    step: int
    rollouts: list[Rollout]
    scored: list[Rollout]
    warning: str = ""


class Trainer:
    """Holds the parts of a step, which is `batch = collect(n)`, `learn(batch)`, `publish(batch)`.

    A step depends on its number, the seed, the data position and the weights, on nothing else.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptStream,
        sampler: Sampler,
        verifier: VerifierPool,
        policy: Policy,
        updater: Updater,
        probe: LogprobProbe,
    ):
        self.config, self.task, self.tokenizer, self.prompts = config, task, tokenizer, prompts
        self.sampler, self.verifier, self.policy, self.updater = sampler, verifier, policy, updater
        self.probe, self.ranks = probe, policy.ranks
        self.objective = OBJECTIVES[config.algorithm.objective](config.algorithm)
        self.correctness = Correctness(config.algorithm.correct_threshold, config.algorithm.truncated)
        self.settings = SamplingSettings(
            num_samples=config.batch.rollouts_per_prompt,
            max_new_tokens=config.sampler.max_new_tokens,
            temperature=config.sampler.temperature,
        )
        self.times: dict[str, float] = {}

    def collect(self, step: int) -> Batch:
        """Sample, verify, weigh, score: everything of a step that leaves the weights alone."""
        self.times = {}
        with self.timed("freshness"):
            self.sampler.prove_fresh(step - 1)
        rollouts = self.sample_and_verify(step)
        self.assign_advantages(rollouts)
        scored = self.score_sample(step, rollouts)
        return Batch(step, rollouts, scored, self.probe.check(scored))

    def learn(self, batch: Batch) -> dict[str, float]:
        """Move the weights; returns the metrics of the update."""
        self.sampler.pause()
        with self.timed("train"):
            metrics = self.updater.run(batch.rollouts)
        warnings = [batch.warning, verifier_warning(batch.rollouts), metrics.pop("warnings", "")]
        return metrics | ({"warnings": "; ".join(filter(None, warnings))} if any(warnings) else {})

    def publish(self, batch: Batch) -> dict[str, float]:
        """Hand the moved weights to the sampler; returns the metrics of the step besides those of the update."""
        with self.timed("publish"):
            num_bytes = self.sampler.publish(batch.step)
        metrics = rollout_metrics(batch.rollouts, batch.scored, self.correctness) | {"publish/bytes": num_bytes}
        num_tokens = sum(len(r.completion_ids) for r in batch.rollouts)
        metrics["throughput/tokens_per_s"] = num_tokens / sum(self.times.values())
        return metrics | {f"time/{phase}_s": seconds for phase, seconds in self.times.items()}

    def sample_and_verify(self, step: int) -> list[Rollout]:
        """One batch of groups; with dynamic sampling, groups of equal rewards are replaced for a number of rounds."""
        num_prompts = self.config.batch.prompts_per_step
        rounds = self.config.algorithm.dynamic_sampling_rounds
        groups = self._draw_groups(step, 0, num_prompts)
        for attempt in range(1, rounds + 1):
            groups = with_contrast(groups)
            if len(groups) == num_prompts:
                break
            groups += self._draw_groups(step, attempt, num_prompts - len(groups))
        for index, group in enumerate(groups):
            for rollout in group:
                rollout.group = index
        return [rollout for group in groups for rollout in group]

    def _draw_groups(self, step: int, attempt: int, num_prompts: int) -> list[list[Rollout]]:
        """Every rank samples and verifies its part of the prompts; then all ranks have all groups, in prompt order."""
        problems = self.prompts.take(num_prompts)
        prompts = [prompt_ids(self.task, p, self.tokenizer) for p in problems]
        estimates = [len(ids) + self.settings.max_new_tokens for ids in prompts]
        mine = spread(estimates, self.ranks.world_size)[self.ranks.rank]
        with self.timed("generate"):
            seeds = [seed_of(self.config.run.seed, step, attempt, i) for i in mine]
            rollouts = self.sampler.generate([prompts[i] for i in mine], self.settings, seeds)
        with self.timed("verify"):
            self._verify([problems[i] for i in mine], rollouts)
        for rollout in rollouts:
            rollout.weight_version = step - 1
        size = self.settings.num_samples
        groups = {i: rollouts[n * size : (n + 1) * size] for n, i in enumerate(mine)}
        with self.timed("exchange"):
            everyones = self.ranks.merge(groups)
        return [everyones[i] for i in range(num_prompts)]

    def _verify(self, problems: list[Problem], rollouts: list[Rollout]) -> None:
        """Texts and verdicts into the rollouts, whose `group` indexes `problems`."""
        texts = completion_texts(self.tokenizer, rollouts)
        verdicts = self.verifier.score(
            [(problems[r.group].prompt, t, problems[r.group].row) for r, t in zip(rollouts, texts, strict=True)]
        )
        for rollout, text, verdict in zip(rollouts, texts, verdicts, strict=True):
            problem = problems[rollout.group]
            rollout.problem_id, rollout.prompt_text, rollout.text = problem.id, problem.prompt, text
            rollout.reward, rollout.reason = verdict.reward, verdict.reason
            self._shape_reward(rollout)

    def _shape_reward(self, rollout: Rollout) -> None:
        """What truncation and length do to a verdict. A rollout without one stays without."""
        algorithm = self.config.algorithm
        if rollout.reward is None:
            return
        rollout.reward = self.correctness.reward(rollout.reward, is_truncated=rollout.is_truncated)
        if rollout.is_truncated and algorithm.truncated == "mask":
            rollout.loss_mask = [0] * len(rollout.completion_ids)
        elif rollout.is_truncated and algorithm.truncated == "wrong" and rollout.reason not in POOL_REASONS:
            rollout.reason = "truncated"
        rollout.penalty = overlong_penalty(
            len(rollout.completion_ids),
            self.config.sampler.max_new_tokens,
            algorithm.overlong_buffer,
            algorithm.overlong_penalty,
        )

    def assign_advantages(self, rollouts: list[Rollout]) -> None:
        """Rewards of the batch → signed advantages; a missing reward and a masked rollout get 0."""
        penalties = torch.tensor([r.penalty for r in rollouts], dtype=torch.float64)
        rewards_PG = (rewards_of(rollouts) + penalties).view(-1, self.settings.num_samples)
        for rollout, advantage in zip(rollouts, self.objective(rewards_PG).flatten().tolist(), strict=True):
            rollout.advantage = advantage if rollout.num_tokens else 0.0

    def score_sample(self, step: int, rollouts: list[Rollout]) -> list[Rollout]:
        """Trainer log-probs and entropies of a fixed random sample of all rollouts, before the update."""
        count = min(self.config.run.scored_rollouts, len(rollouts))
        sample = random.Random(seed_of(self.config.run.seed, step, "scored")).sample(rollouts, count)
        with self.timed("score"):
            scores = score(self.policy, sample, self.config.batch.micro_batch_tokens)
        for rollout, (logprobs, entropy) in zip(sample, scores, strict=True):
            rollout.trainer_logprobs, rollout.entropy = logprobs, entropy
        return sample

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the wall time of the block, in seconds, to `times[phase]`."""
        alive(phase)
        start = time.perf_counter()
        yield
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        self.times[phase] = self.times.get(phase, 0.0) + time.perf_counter() - start


def rewards_of(rollouts: list[Rollout]) -> torch.Tensor:
    """(R,) float64, NaN where there is none."""
    return torch.tensor([math.nan if r.reward is None else r.reward for r in rollouts], dtype=torch.float64)


def with_contrast(groups: list[list[Rollout]]) -> list[list[Rollout]]:
    """The groups of which not all verdicts are equal, missing ones aside; all of one size."""
    rewards_PG = rewards_of([rollout for group in groups for rollout in group]).view(len(groups), -1)
    return [group for group, is_kept in zip(groups, has_contrast(rewards_PG).tolist(), strict=True) if is_kept]
