"""Trains a critic beside the policy, whose values give GAE (`learning.gae`).

Its loss is ½·max((V − G)², (V′ − G)²) with V′ = V held within ±value_clip of the value before the step and G the return
at that time: the mean over the taught tokens of each mini-batch. Mini-batches are the policy's, of whole prompts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastrl.learners.protocol import LearnerParts
from fastrl.learning.gae import Gae, explained_variance, is_taught, token_rewards
from fastrl.learning.problem import Problem
from fastrl.learning.tools import Tools
from fastrl.policy.optimizer.bytes import optimizer_bytes
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.packing import cut_mini_batches
from fastrl.policy.roles import new_critic
from fastrl.policy.scoring import values
from fastrl.policy.vocabulary import sparse_embedding
from fastrl.process.watchdog import alive
from fastrl.rollouts import FILLER, Rollouts, spans

WEIGHT = "weight."


@dataclass(frozen=True)
class Lesson:
    """What the critic said of a batch before its updates, and what came: float32, where is_taught_N."""

    rollouts: Rollouts
    is_taught_N: np.ndarray
    values_N: np.ndarray
    returns_N: np.ndarray


class CriticLearner:
    """Gives GAE from its critic's values, and lets the critic learn the returns."""

    num_backbones: ClassVar[int] = 1

    def __init__(self, parts: LearnerParts):
        config = parts.config
        self.settings: Gae = parts.settings
        self.critic = new_critic(config, parts.base, parts.ranks, parts.say)
        optimizer = replace(config.optimizer, lr=self.settings.critic_lr)
        self.optimizer = build_optimizer(self.critic, optimizer, config.run.num_steps)
        found = optimizer_bytes(self.critic.parameters(), optimizer)
        self.bytes_to_come = 0 if optimizer.offload else (found.gradients + found.states) // parts.ranks.world_size
        self.num_updates = config.algorithm.updates_per_batch
        self.token_budget = config.batch.micro_batch_tokens
        self.lesson: Lesson | None = None

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """Completions without a reward and tokens that the loss may not use get 0 and teach nothing."""
        is_taught_N = is_taught(batch)
        rollouts = batch.take(batch.sum_by_rollout(is_taught_N) > 0)
        taught_N = is_taught(rollouts)
        values_N = values(self.critic, rollouts, self.token_budget)
        rewards_n = token_rewards(rollouts, taught_N, self._penalties(rollouts, tools)[taught_N])
        lengths_R = rollouts.sum_by_rollout(taught_N).astype(np.int64)
        advantages_n = self.settings.advantages(rewards_n, values_N[taught_N], lengths_R)
        returns_N = np.zeros(rollouts.num_tokens, dtype=np.float32)
        returns_N[taught_N] = advantages_n + values_N[taught_N]
        self.lesson = Lesson(rollouts, taught_N, values_N, returns_N)
        credits_N = np.zeros(batch.num_tokens)
        credits_N[is_taught_N] = self.settings.credits(advantages_n)
        return credits_N

    def _penalties(self, rollouts: Rollouts, tools: Tools) -> np.ndarray:
        """(N,) what each token's reward loses for leaving the reference."""
        if not self.settings.kl_coef:
            return np.zeros(rollouts.num_tokens)
        return self.settings.kl_coef * (tools.score(rollouts) - tools.score(rollouts, model="reference"))

    def learn(self) -> dict[str, float]:
        """As many updates as the policy makes, fewer where prompts teach nothing."""
        lesson, totals = self.lesson, Counter[str]()
        sums = torch.zeros(2, dtype=torch.float64, device=self.critic.device)  # loss, tokens whose value was held
        for members in cut_mini_batches(lesson.rollouts, self.num_updates):
            if len(members):
                totals.update(self._update(members, sums))
        loss, num_held = self.critic.ranks.sum(sums.cpu().numpy()).tolist()
        return self._metrics(totals, loss, num_held)

    def _update(self, members: np.ndarray, sums: Tensor) -> dict[str, float]:
        """One optimizer step on these rollouts of the lesson."""
        lesson, ranks = self.lesson, self.critic.ranks
        rollouts = lesson.rollouts.take(members)
        weight = 1 / float(is_taught(rollouts).sum())
        parts = self.critic.cut(rollouts, self.token_budget, num_ranks=ranks.world_size)
        for part in ranks.share(parts, filler=members[:0]):
            alive()
            self._backward(members[part], weight, sums)
        norm, has_moved = self.optimizer.step()
        return {"grad_norm": norm if has_moved else 0.0, "num_updates": has_moved, "num_nonfinite": not has_moved}

    def _backward(self, members: np.ndarray, weight: float, sums: Tensor) -> None:
        """Forward and backward of one micro-batch; without members, of a loss of zero (ranks run equally many)."""
        if not len(members):
            (0 * self.critic(self.critic.micro_batch(FILLER)).sum()).backward()
            return
        lesson, rollouts = self.lesson, self.lesson.rollouts.take(members)
        places = spans(lesson.rollouts.starts_R[members], lesson.rollouts.completion_lengths_R[members])
        columns = (rollouts.own(c[places]) for c in (lesson.values_N, lesson.returns_N, lesson.is_taught_N))
        old_N, returns_N, taught_N = (torch.from_numpy(column).to(self.critic.device) for column in columns)
        with sparse_embedding(self.critic):
            values_N = self.critic(self.critic.micro_batch(rollouts))
        losses_N, is_held_N = value_losses(values_N, old_N, returns_N, self.settings.value_clip)
        loss = weight * losses_N.where(taught_N, 0.0).sum()
        loss.backward()
        sums += torch.stack([loss.detach().double(), (is_held_N & taught_N).sum().double()])

    def _metrics(self, totals: Counter[str], loss: float, num_held: float) -> dict[str, float]:
        """loss and grad_norm: means over updates. The values are those before them."""
        lesson, num_updates = self.lesson, max(totals["num_updates"], 1)
        values_n, returns_n = lesson.values_N[lesson.is_taught_N], lesson.returns_N[lesson.is_taught_N].astype(float)
        metrics = {
            "critic/loss": loss / num_updates,
            "critic/explained_variance": explained_variance(values_n, returns_n),
            "critic/mean_value": float(values_n.mean()) if len(values_n) else float("nan"),
            "critic/mean_return": float(returns_n.mean()) if len(returns_n) else float("nan"),
            "critic/clipped": num_held / max(len(values_n), 1),
            "critic/grad_norm": totals["grad_norm"] / num_updates,
            "critic/num_updates": totals["num_updates"],
            "critic/num_nonfinite": totals["num_nonfinite"],
            "critic/lr": self.optimizer.lr,
        }
        if totals["num_nonfinite"]:
            metrics["warnings"] = f"critic: {totals['num_nonfinite']} update(s) skipped: the gradient is not finite"
        return metrics

    def start_step(self, step: int) -> None:
        self.optimizer.start_step(step)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's, and `weight.NAME` for weights that are not their own masters there."""
        tensors = self.optimizer.state_tensors()
        weights = {name: p.detach() for name, p in self.critic.named_parameters() if f"master.{name}" not in tensors}
        return tensors | {WEIGHT + name: weight for name, weight in weights.items()}

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        return self.optimizer.empty_state(name, size, dtype)

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.critic.named_parameters():
            if WEIGHT + name in tensors:
                parameter.copy_(tensors[WEIGHT + name])
        self.optimizer.load_state_tensors(tensors)


def value_losses(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(N,) losses that can be differentiated, and (N,) bool: the value is held, so that moving on gains nothing."""
    near_N = values_N.clamp(old_N - clip, old_N + clip)
    plain_N, held_N = (values_N - returns_N).square(), (near_N - returns_N).square()
    return 0.5 * torch.maximum(plain_N, held_N), held_N > plain_N
