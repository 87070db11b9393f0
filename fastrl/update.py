"""From a batch of rollouts with advantages to optimizer steps: mini-batches, dropping, token weights, micro-batches.

π_old is the policy before the first update of the batch: the first mini-batch needs no old log-probs (ρ ≡ 1), later
ones take the sampler's or those of a no-gradient pass made before the first update. Importance weights: `importance`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from fastrl.config import AlgorithmConfig, TrainConfig
from fastrl.importance import ImportanceMode, attach_weights
from fastrl.kernels import SURROGATES, PolicyLoss, TokenLoss
from fastrl.kernels.surrogates import MAX_LOG_RATIO
from fastrl.policy.lora import adapters_off
from fastrl.policy.micro_batch import MicroBatch, computed_tokens, num_inputs
from fastrl.policy.model import Policy
from fastrl.policy.optimizer import Optimizer
from fastrl.policy.scoring import score
from fastrl.policy.vocabulary import head_gradient, sparse_embedding
from fastrl.reductions import REDUCTIONS, UpdateShape
from fastrl.rollouts import FILLER, Rollout
from fastrl.watchdog import alive


def token_loss(config: AlgorithmConfig) -> TokenLoss:
    """The token-level loss that the config names."""
    parameters = {
        "reinforce": {},
        "ppo_clip": {"low": config.clip_low, "high": config.clip_high, "dual": config.dual_clip},
        "cispo": {"cap": config.cispo_cap},
    }[config.surrogate]
    surrogate = SURROGATES[config.surrogate](**parameters)
    return TokenLoss(surrogate, kl_coef=config.kl_coef, entropy_coef=config.entropy_coef)


class Updater:
    """`run(rollouts)` makes every optimizer step of one batch and returns its metrics."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        config: TrainConfig,
        *,
        reference: Policy | None = None,
        sampler_shares_weights: bool = True,
    ):
        self.policy, self.optimizer, self.reference = policy, optimizer, reference
        self.importance: ImportanceMode = "off"
        self.algorithm = config.algorithm
        self.token_budget = config.batch.micro_batch_tokens
        self.max_new_tokens = config.sampler.max_new_tokens
        batch_size = config.batch.prompts_per_step * config.batch.rollouts_per_prompt
        self.nominal_size = math.ceil(batch_size / config.algorithm.updates_per_batch)
        default = "sampler" if sampler_shares_weights else "recompute"
        self.old_source = default if self.algorithm.old_logprobs == "auto" else self.algorithm.old_logprobs

    def run(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """One batch, rollouts in prompt order, advantages set. The weights move in place."""
        mini_batches = self._cut(rollouts)
        self._attach_logprobs(mini_batches)
        totals: Counter[str] = Counter()
        for mini_batch in mini_batches:
            totals.update(self._update(mini_batch))
        return _summarise(totals, len(rollouts), self.token_budget)

    def _is_kept(self, rollout: Rollout) -> bool:
        """Computed at all: it has an advantage, or a regulariser gives it gradient."""
        return rollout.has_gradient or (self.policy.loss.has_regulariser and rollout.num_tokens > 0)

    def _cut(self, rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
        if self.algorithm.minibatch_cut == "after-dropping":  # by advantage alone, as the authors drop by reward
            kept = [r for r in rollouts if r.has_gradient]
            return [kept[i : i + self.nominal_size] for i in range(0, len(kept), self.nominal_size)]
        groups = sorted({r.group for r in rollouts})
        num_updates = self.algorithm.updates_per_batch
        mini_batch_of = {group: i * num_updates // len(groups) for i, group in enumerate(groups)}
        mini_batches: list[list[Rollout]] = [[] for _ in range(num_updates)]
        for rollout in rollouts:
            mini_batches[mini_batch_of[rollout.group]].append(rollout)
        return mini_batches

    def _attach_logprobs(self, mini_batches: list[list[Rollout]]) -> None:
        """Reference log-probs where a KL penalty asks for them, old log-probs for mini-batches after the first."""
        if self.reference is not None:
            kept = [r for m in mini_batches for r in m if self._is_kept(r)]
            with adapters_off(self.reference.model):
                scores = score(self.reference, kept, self.token_budget)
            for rollout, (logprobs, _) in zip(kept, scores, strict=True):
                rollout.ref_logprobs = logprobs
        is_asked_for = self.algorithm.surrogate != "reinforce" or self.importance != "off"
        later = [r for m in mini_batches[1:] for r in m if is_asked_for and self._is_kept(r)]
        needs_policy = self.importance != "off" or self.old_source == "recompute"
        scores = score(self.policy, later, self.token_budget) if later and needs_policy else []
        logprobs = [row for row, _ in scores] or [r.sampler_logprobs for r in later]
        for rollout, row in zip(later, logprobs, strict=True):
            rollout.old_logprobs = row
        self._attach_importance(mini_batches, later)

    def _attach_importance(self, mini_batches: list[list[Rollout]], later: list[Rollout]) -> None:
        """Two-phase importance weights. Token weights of mini-batches without old log-probs are left to the kernel."""
        self.policy.importance_cap = self.algorithm.importance_cap if self.importance == "token" else None
        if self.importance == "off":
            return
        weighed = later
        if self.importance != "token":
            weighed = [r for m in mini_batches for r in m if self._is_kept(r)]
        known = [r for r in weighed if r.old_logprobs is not None]
        unknown = [r for r in weighed if r.old_logprobs is None]
        scores = [logprobs for logprobs, _ in score(self.policy, unknown, self.token_budget)]
        logprobs = [r.old_logprobs for r in known] + scores
        attach_weights(known + unknown, logprobs, self.importance, self.algorithm.importance_cap)

    def _token_weights(
        self, mini_batch: list[Rollout], micro_batches: list[list[int]]
    ) -> tuple[list[float], list[float]]:
        """Weight of each rollout's tokens in the terms that act on all that are computed, and in the policy term."""
        micro_batch_B = torch.full((len(mini_batch),), -1)
        for index, members in enumerate(micro_batches):
            micro_batch_B[members] = index
        num_tokens_B = torch.tensor([r.num_tokens for r in mini_batch])
        policy = UpdateShape(
            num_tokens_B=num_tokens_B,
            has_gradient_B=torch.tensor([r.has_gradient for r in mini_batch]),
            micro_batch_B=micro_batch_B,
            max_new_tokens=self.max_new_tokens,
            nominal_size=self.nominal_size,
        )
        everything = replace(policy, has_gradient_B=num_tokens_B > 0) if self.policy.loss.has_regulariser else policy
        reduction = REDUCTIONS[self.algorithm.reduction]
        return reduction(everything).tolist(), reduction(policy).tolist()

    def _update(self, mini_batch: list[Rollout]) -> Counter[str]:
        kept = [i for i, r in enumerate(mini_batch) if self._is_kept(r)]
        if not kept:
            return Counter({"num_empty_updates": 1})
        ranks = self.policy.ranks
        num_ranks = 1 if self.algorithm.reduction == "micro-batch-mean" else ranks.world_size  # that one sees the cut
        parts = self.policy.cut([mini_batch[i] for i in kept], self.token_budget, num_ranks=num_ranks)
        micro_batches = [[kept[i] for i in members] for members in parts]
        weights, policy_weights = self._token_weights(mini_batch, micro_batches)
        shares = [p / w if w else 0.0 for p, w in zip(policy_weights, weights, strict=True)]
        totals: Counter[str] = Counter(num_kept=len(kept), num_micro_batches=len(micro_batches))
        for indices in micro_batches:
            members = [mini_batch[i] for i in indices]
            computed = computed_tokens(members, is_packed=self.policy.is_packed)
            totals.update(sequence_tokens=sum(map(num_inputs, members)), computed_tokens=computed)
        mine: Counter[str] = Counter()
        for indices in ranks.share(micro_batches, filler=[]):
            alive()
            members = [mini_batch[i] for i in indices]
            mine.update(self._backward(members, [weights[i] for i in indices], [shares[i] for i in indices]))
        totals.update(ranks.sum(mine))
        norm, has_moved = self.optimizer.step()
        totals.update(grad_norm=norm if has_moved else 0.0, num_updates=has_moved, num_nonfinite=not has_moved)
        return totals

    def _backward(self, members: list[Rollout], token_weights: list[float], shares: list[float]) -> Counter[str]:
        """Forward and backward of one micro-batch; without members, of a loss of zero (ranks run equally many).

        shares: the policy term's weight over the token weight. It multiplies the advantage, in which every surrogate is
        linear.
        """
        if not members:
            self.policy(self.policy.micro_batch([FILLER])).loss.backward()
            return Counter()
        in_kernel = self.importance == "token" and members[0].importance is None
        batch = self.policy.micro_batch(members, token_weights, shares, has_importance=in_kernel)
        with sparse_embedding(self.policy):
            result = self.policy(batch, grad_weight=head_gradient(self.policy))
        result.loss.backward()
        return _token_totals(batch, result)


def _token_totals(batch: MicroBatch, result: PolicyLoss) -> Counter[str]:
    positive, negative = batch.advantages_N > 0, batch.advantages_N < 0
    totals = Counter(
        loss=result.loss.item(),
        tokens=batch.token_weights_N.count_nonzero().item(),
        tokens_positive=positive.sum().item(),
        tokens_negative=negative.sum().item(),
        clipped_positive=(result.clipped & positive).sum().item(),
        clipped_negative=(result.clipped & negative).sum().item(),
    )
    if batch.old_logprobs_N is not None:
        is_active = positive | negative
        log_ratio = result.logprobs[is_active] - batch.old_logprobs_N[is_active]
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        totals.update(ratio_sum=ratio.sum().item(), ratio_tokens=ratio.numel())
    if batch.ref_logprobs_N is not None:
        log_ratio = (batch.ref_logprobs_N - result.logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        totals.update(k3_sum=(log_ratio.exp() - log_ratio - 1).sum().item(), k3_tokens=log_ratio.numel())
    return totals


def _summarise(totals: Counter[str], num_rollouts: int, token_budget: int) -> dict[str, float]:
    """packing/efficiency: tokens of the sequences over those computed, below 1 for padding and above it where prompts
    are computed once for several completions; packing/fill: computed tokens over the budget.
    """
    num_updates = max(totals["num_updates"], 1)
    metrics = {
        "update/num_updates": totals["num_updates"],
        "update/num_empty": totals["num_empty_updates"],
        "update/num_nonfinite": totals["num_nonfinite"],
        "update/num_micro_batches": totals["num_micro_batches"],
        "update/num_kept": totals["num_kept"],
        "update/kept_share": totals["num_kept"] / max(num_rollouts, 1),
        "update/tokens": totals["tokens"],
        "packing/efficiency": totals["sequence_tokens"] / max(totals["computed_tokens"], 1),
        "packing/fill": totals["computed_tokens"] / max(totals["num_micro_batches"] * token_budget, 1),
        "loss": totals["loss"] / num_updates,
        "grad_norm": totals["grad_norm"] / num_updates,
        "clip/positive": totals["clipped_positive"] / max(totals["tokens_positive"], 1),
        "clip/negative": totals["clipped_negative"] / max(totals["tokens_negative"], 1),
    }
    if totals["ratio_tokens"]:
        metrics["ratio/mean"] = totals["ratio_sum"] / totals["ratio_tokens"]
    if totals["k3_tokens"]:
        metrics["kl/reference_k3"] = totals["k3_sum"] / totals["k3_tokens"]
    if totals["num_nonfinite"]:
        metrics["warnings"] = f"{totals['num_nonfinite']} update(s) skipped: the gradient is not finite"
    return metrics
