"""What a step says about its rollouts, always split by sign: positive and negative samples behave differently."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fastrl.learning.objectives import has_contrast
from fastrl.rollouts import Rollouts
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.faults import LIMIT_REASONS
from fastrl.tasks.verifier.pool import POOL_REASONS


def rollout_metrics(rollouts: Rollouts, scored: Rollouts, correctness: Correctness) -> dict[str, float]:
    """Reward, sign split, lengths of all rollouts; entropy and |Δlogp| of the scored ones, split by correctness.

    A rollout's sign is that of its credits' sum. Δlogp = trainer − sampler log-prob per token, in nats: what the loss
    believes against what was sampled. `ratio` is the mean of exp(Δlogp), `k3` that of exp(Δlogp) − 1 − Δlogp:
    KL(sampler ‖ trainer), never negative (Schulman). Of conversations: turns of the model, tokens of one, and the share
    of replies among all tokens; rollouts/truncated_share are those that no environment ended.
    """
    rewards = rollouts.rewards_R[~np.isnan(rollouts.rewards_R)]
    signs_R = np.sign(rollouts.credit_sums_R)
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/correct_share": _mean(correctness.are_correct(rewards)),
        "rollouts/num": len(rollouts),
        "rollouts/num_positive": int((signs_R > 0).sum()),
        "rollouts/num_negative": int((signs_R < 0).sum()),
        "rollouts/num_zero": int((signs_R == 0).sum()),
        "rollouts/num_unverified": len(rollouts) - len(rewards),
        "rollouts/truncated_share": _mean(rollouts.is_truncated_R),
        "rollouts/mean_tokens": _mean(rollouts.completion_lengths_R),
        "groups/equal_share": _equal_share(rollouts),
        "reward/penalty_mean": _mean(rollouts.penalties_R),
    }
    for reason in POOL_REASONS:
        metrics[f"verify/num_{reason.replace(' ', '_')}"] = int((rollouts.reasons_R == reason).sum())
    if rollouts.turns_N is not None:
        num_own, num_turns = int((rollouts.turns_N > 0).sum()), int(rollouts.num_turns_R.sum())
        metrics["turns/mean"] = _mean(rollouts.num_turns_R)
        metrics["turns/mean_tokens"] = num_own / max(num_turns, 1)
        metrics["turns/reply_share"] = 1 - num_own / max(rollouts.num_tokens, 1)
    return metrics | _score_metrics(scored, correctness)


def part_metrics(rollouts: Rollouts, names: Sequence[str]) -> dict[str, float]:
    """Of each reward that was added up, as it was before its weight: the mean over the rollouts that it judged, over
    those of them with positive and with negative credit, and the share that it judged."""
    metrics, signs_R = {}, np.sign(rollouts.credit_sums_R)
    for name, part_R in zip(names, rollouts.parts_R.T if names else (), strict=True):
        is_judged_R = ~np.isnan(part_R)
        metrics[f"reward/{name}/mean"] = _mean(part_R[is_judged_R])
        metrics[f"reward/{name}/positive"] = _mean(part_R[is_judged_R & (signs_R > 0)])
        metrics[f"reward/{name}/negative"] = _mean(part_R[is_judged_R & (signs_R < 0)])
        metrics[f"reward/{name}/judged_share"] = _mean(is_judged_R)
    return metrics


def _score_metrics(scored: Rollouts, correctness: Correctness) -> dict[str, float]:
    metrics, is_judged_R = {}, ~np.isnan(scored.rewards_R)
    is_correct_R = correctness.are_correct(scored.rewards_R)
    parts = {"mean": scored, "correct": scored.take(is_correct_R), "wrong": scored.take(is_judged_R & ~is_correct_R)}
    for name, part in parts.items():
        metrics[f"entropy/{name}"] = _mean(part.own(part.entropy_N))
        metrics[f"logprob/{name}"] = _mean(part.own(part.policy_logprobs_N))
        gaps_N = part.own(part.policy_logprobs_N.astype(np.float64) - part.sampler_logprobs_N)
        metrics["mismatch/mean_abs" if name == "mean" else f"mismatch/mean_abs_{name}"] = _mean(np.abs(gaps_N))
        if name == "mean":
            metrics["mismatch/max_abs"] = float(np.abs(gaps_N).max(initial=-np.inf)) if len(gaps_N) else float("nan")
            metrics["mismatch/ratio"] = _mean(np.exp(gaps_N))
            metrics["mismatch/k3"] = _mean(np.expm1(gaps_N) - gaps_N)
    return metrics


def no_gradient_reason(metrics: dict) -> str:
    """Why a step moved nothing, from its metrics; empty where it moved something, or nobody knows."""
    if metrics.get("update/num_updates") != 0:
        return ""
    if metrics.get("update/num_nonfinite"):
        return "it was not finite"
    num, correct_share = metrics.get("rollouts/num"), metrics.get("reward/correct_share")
    if num and metrics.get("rollouts/num_unverified") == num:
        return "no completion has a verdict"
    if correct_share in (0, 1):
        return f"every completion is {'right' if correct_share else 'wrong'}"
    if metrics.get("groups/equal_share") == 1:
        return "the rewards of each group are equal"
    return "no token has credit"


def verifier_warning(rollouts: Rollouts) -> str:
    """A warning about limits that were hit and completions without a verdict; empty if there are none."""
    hits = Counter(rollouts.reasons_R.tolist())
    faults = rollouts.reasons_R[np.isnan(rollouts.rewards_R)]
    said = [f"{reason} on {hits[reason]}" for reason in LIMIT_REASONS if hits[reason]]
    said += [f"no verdict on {len(faults)} ({faults[0]:.80})"] if len(faults) else []
    return f"verifier: {', '.join(said)} of {len(rollouts)}" if said else ""


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def _equal_share(rollouts: Rollouts) -> float:
    """Share of the groups with rewards whose rewards are all equal: group objectives give these no gradient."""
    rewards_R = rollouts.rewards_R + rollouts.penalties_R
    rewards_PG = rewards_R.reshape(int(rollouts.groups_R.max()) + 1, -1)
    has_rewards_P = ~np.isnan(rewards_PG).all(axis=1)
    return _mean(~has_contrast(rewards_PG[has_rewards_P]))
