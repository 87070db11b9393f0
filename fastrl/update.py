"""From a batch of rollouts with credits to optimizer steps: mini-batches, dropping, token weights, micro-batches.

π_old is the policy before the first update of the batch. The first mini-batch needs no old log-probs (ρ ≡ 1). Later
ones take the sampler's, or those of a pass without gradient before the first update. Importance weights are explained
in `learning.importance`, weights that come from whole sequences in `learning.sequence_surrogates`.
"""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from fastrl.config.algorithm import AlgorithmConfig, chosen
from fastrl.config.schema import TrainConfig
from fastrl.kernels import SURROGATES, TokenLoss
from fastrl.learning.importance import ImportanceMode, importance_weights
from fastrl.learning.reductions import REDUCTIONS, UpdateShape
from fastrl.learning.sequence_surrogates import SEQUENCE_SURROGATES
from fastrl.policy.lora import adapters_off
from fastrl.policy.micro_batch import computed_tokens, num_inputs_R
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.packing import cut_mini_batches
from fastrl.policy.reduction import prepare_backward
from fastrl.policy.scoring import score
from fastrl.policy.totals import COUNTS, SUMS, Totals
from fastrl.policy.vocabulary import head_gradient, sparse_embedding
from fastrl.process.watchdog import alive
from fastrl.rollouts import FILLER, Rollouts


def token_loss(config: AlgorithmConfig) -> TokenLoss:
    """The token-level loss that the config names."""
    surrogate = chosen(config, SURROGATES, config.kernel_surrogate)
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
        self.importance_mode: ImportanceMode = "off"
        self.algorithm = config.algorithm
        self.is_of_sequences = config.algorithm.surrogate in SEQUENCE_SURROGATES
        self.token_budget = config.batch.micro_batch_tokens
        self.max_new_tokens = config.sampler.max_new_tokens
        batch_size = config.batch.prompts_per_step * config.batch.rollouts_per_prompt
        self.nominal_size = math.ceil(batch_size / config.algorithm.updates_per_batch)
        default = "sampler" if sampler_shares_weights else "recompute"
        self.old_source = default if self.algorithm.old_logprobs == "auto" else self.algorithm.old_logprobs

    def run(self, batch: Rollouts) -> dict[str, float]:
        """Every update of one batch of rollouts with credits, in the order of their prompts."""
        totals, mine = Counter[str](), Totals(self.policy.device)
        for mini_batch in self._prepared(self._cut(batch)):
            if self.is_of_sequences and mini_batch.old_logprobs_N is not None:
                mini_batch = self._sequence_weighed(mini_batch, totals)
            totals.update(self._update(mini_batch, mine))
        sums = dict(zip(SUMS + COUNTS, self.policy.ranks.sum(mine.read()).tolist(), strict=True))
        totals.update({name: int(value) if name in COUNTS else value for name, value in sums.items()})
        return _summarise(totals, len(batch), self.token_budget)

    def _is_kept_R(self, rollouts: Rollouts) -> np.ndarray:
        """Computed at all: it has credit, or a regulariser gives it gradient."""
        has_loss_R = (rollouts.loss_tokens_R > 0) & self.policy.loss.has_regulariser
        return rollouts.has_gradient_R | has_loss_R

    def _cut(self, batch: Rollouts) -> list[Rollouts]:
        """Mini-batches: whole prompts, or what is left after dropping."""
        if self.algorithm.minibatch_cut == "after-dropping":  # by credit alone, as the authors drop by reward
            kept = np.flatnonzero(batch.has_gradient_R)
            starts = range(0, len(kept), self.nominal_size)
            return [batch.take(kept[start : start + self.nominal_size]) for start in starts]
        return [batch.take(members) for members in cut_mini_batches(batch, self.algorithm.updates_per_batch)]

    def _prepared(self, mini_batches: list[Rollouts]) -> list[Rollouts]:
        """Reference log-probs where a KL penalty asks for them, old log-probs for mini-batches after the first."""
        if self.reference is not None:
            with adapters_off(self.reference.model):
                scores = self._scores(self.reference, mini_batches)
            mini_batches = [replace(m, ref_logprobs_N=s) for m, s in zip(mini_batches, scores, strict=True)]
        first, later = mini_batches[:1], mini_batches[1:]
        if self.algorithm.surrogate != "reinforce" or self.importance_mode != "off":
            needs_policy = self.importance_mode != "off" or self.old_source == "recompute"
            scores = self._scores(self.policy, later) if needs_policy else [m.sampler_logprobs_N for m in later]
            later = [replace(m, old_logprobs_N=s) for m, s in zip(later, scores, strict=True)]
        return self._weighed(first, later)

    def _scores(self, policy: Policy, mini_batches: list[Rollouts]) -> list[np.ndarray]:
        """Log-probs of what is computed of each mini-batch, NaN for the rest; one pass for all."""
        kept = [m.by_token(self._is_kept_R(m)) for m in mini_batches]
        columns = [np.full(m.num_tokens, np.nan, dtype=np.float32) for m in mini_batches]
        if any(is_kept_N.any() for is_kept_N in kept):
            parts = [m.take(self._is_kept_R(m)) for m in mini_batches]
            logprobs_N, _ = score(policy, Rollouts.concat(parts), self.token_budget)
            ends = np.cumsum([part.num_tokens for part in parts])
            for column, is_kept_N, found in zip(columns, kept, np.split(logprobs_N, ends[:-1]), strict=True):
                column[is_kept_N] = found
        return columns

    def _weighed(self, first: list[Rollouts], later: list[Rollouts]) -> list[Rollouts]:
        """With two-phase importance weights. The first mini-batch's token weights are left to the kernel, unless its
        rollouts have others already.
        """
        mode, cap = self.importance_mode, self.algorithm.importance.cap
        self.policy.importance_cap = cap if mode == "token" else None
        if mode == "off":
            return first + later
        if mode != "token" or any(m.importance_weights_N is not None for m in first):
            scores = self._scores(self.policy, first)
            first = [self._corrected(m, logprobs_N) for m, logprobs_N in zip(first, scores, strict=True)]
        return first + [self._corrected(m, m.old_logprobs_N) for m in later]

    def _corrected(self, mini_batch: Rollouts, logprobs_N: np.ndarray) -> Rollouts:
        """With importance weights, times those that a refiner gave."""
        weights_N = importance_weights(mini_batch, logprobs_N, self.importance_mode, self.algorithm.importance.cap)
        given_N = mini_batch.importance_weights_N
        return replace(mini_batch, importance_weights_N=weights_N if given_N is None else weights_N * given_N)

    def _sequence_weighed(self, mini_batch: Rollouts, totals: Counter[str]) -> Rollouts:
        """With the sequence surrogate's factors, from one pass of the policy as it is now.

        Tokens that it clips have no gradient left that the loss could count: `totals` counts them here.
        """
        (logprobs_N,) = self._scores(self.policy, [mini_batch])
        surrogate = chosen(self.algorithm, SEQUENCE_SURROGATES, self.algorithm.surrogate)
        factors_N = surrogate(mini_batch, logprobs_N)
        for name, sign in (("positive", 1), ("negative", -1)):
            num_clipped = int(((factors_N == 0) & (sign * mini_batch.credits_N > 0)).sum())
            totals.update({f"clipped_{name}": num_clipped, f"tokens_{name}": num_clipped})
        weights_N = mini_batch.importance_weights_N
        return replace(mini_batch, importance_weights_N=factors_N if weights_N is None else factors_N * weights_N)

    def _token_weights(self, mini_batch: Rollouts, micro_batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(B,) weights of each rollout's tokens: in the terms that act on all that are computed, in the policy term."""
        micro_batch_B = np.full(len(mini_batch), -1)
        for index, members in enumerate(micro_batches):
            micro_batch_B[members] = index
        policy = UpdateShape(
            num_tokens_B=mini_batch.loss_tokens_R,
            has_gradient_B=mini_batch.has_gradient_R,
            micro_batch_B=micro_batch_B,
            max_new_tokens=self.max_new_tokens,
            nominal_size=self.nominal_size,
        )
        everything = policy
        if self.policy.loss.has_regulariser:
            everything = replace(policy, has_gradient_B=mini_batch.loss_tokens_R > 0)
        reduction = REDUCTIONS[self.algorithm.reduction]
        return reduction(everything).astype(np.float32), reduction(policy).astype(
            np.float32
        )  # as the kernel takes them

    def _update(self, mini_batch: Rollouts, mine: Totals) -> Counter[str]:
        """One optimizer step. Returns what all ranks know; what this one computes is added to `mine`."""
        kept = np.flatnonzero(self._is_kept_R(mini_batch))
        if not len(kept):
            return Counter({"num_empty_updates": 1})
        ranks = self.policy.ranks
        num_ranks = 1 if self.algorithm.reduction == "micro-batch-mean" else ranks.world_size  # that one sees the cut
        parts = self.policy.cut(mini_batch.take(kept), self.token_budget, num_ranks=num_ranks)
        micro_batches = [kept[members] for members in parts]
        weights_B, policy_weights_B = self._token_weights(mini_batch, micro_batches)
        shares_B = np.divide(
            policy_weights_B, weights_B, out=np.zeros(len(weights_B)), where=weights_B != 0, dtype=np.float64
        )
        totals: Counter[str] = Counter(num_kept=len(kept), num_micro_batches=len(micro_batches))
        for indices in micro_batches:
            members = mini_batch.take(indices)
            computed = computed_tokens(members, is_packed=self.policy.is_packed)
            totals.update(sequence_tokens=int(num_inputs_R(members).sum()), computed_tokens=computed)
        shared = ranks.share(micro_batches, filler=kept[:0])
        for number, indices in enumerate(shared, 1):
            alive()
            prepare_backward(self.policy, is_last=number == len(shared))
            self._backward(mini_batch.take(indices), weights_B[indices], shares_B[indices], mine)
        norm, has_moved = self.optimizer.step()
        totals.update(grad_norm=norm if has_moved else 0.0, num_updates=has_moved, num_nonfinite=not has_moved)
        return totals

    def _backward(self, members: Rollouts, weights_R: np.ndarray, shares_R: np.ndarray, mine: Totals) -> None:
        """Forward and backward of one micro-batch; without members, of a loss of zero (ranks run equally many).

        shares_R: the policy term's weight over the token weight. It multiplies the credit, in which every surrogate is
        linear.
        """
        if not len(members):
            self.policy(self.policy.micro_batch(FILLER)).loss.backward()
            return
        in_kernel = self.importance_mode == "token" and members.importance_weights_N is None
        batch = self.policy.micro_batch(members, weights_R, shares_R, with_sampler_logprobs=in_kernel)
        with sparse_embedding(self.policy):
            result = self.policy(batch, grad_weight=head_gradient(self.policy))
        result.loss.backward()
        mine.add(batch, int(members.loss_tokens_R[weights_R != 0].sum()), result)


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
