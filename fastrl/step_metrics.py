"""What a step says about its rollouts, always split by sign: positive and negative samples behave differently."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

from fastrl.objectives import has_contrast
from fastrl.rollouts import Rollout
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import LIMIT_REASONS, POOL_REASONS


def rollout_metrics(rollouts: list[Rollout], scored: list[Rollout], correctness: Correctness) -> dict[str, float]:
    """Reward, sign split, lengths of all rollouts; entropy and |Δlogp| of the scored ones, split by correctness.

    Δlogp = trainer − sampler log-prob per token, in nats: what the loss believes against what was sampled. `ratio` is
    the mean of exp(Δlogp), `k3` that of exp(Δlogp) − 1 − Δlogp: KL(sampler ‖ trainer), never negative (Schulman).
    """
    num = len(rollouts)
    rewards = [r.reward for r in rollouts if r.reward is not None]
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/correct_share": _mean(map(correctness.is_correct, rewards)),
        "rollouts/num": num,
        "rollouts/num_positive": sum(r.advantage > 0 for r in rollouts),
        "rollouts/num_negative": sum(r.advantage < 0 for r in rollouts),
        "rollouts/num_zero": sum(r.advantage == 0 for r in rollouts),
        "rollouts/num_unverified": num - len(rewards),
        "rollouts/truncated_share": sum(r.is_truncated for r in rollouts) / num,
        "rollouts/mean_tokens": _mean([len(r.completion_ids) for r in rollouts]),
        "groups/equal_share": _equal_share(rollouts),
        "reward/penalty_mean": _mean([r.penalty for r in rollouts]),
    }
    for reason in POOL_REASONS:
        metrics[f"verify/num_{reason.replace(' ', '_')}"] = sum(r.reason == reason for r in rollouts)
    parts = {"mean": scored} | {
        name: [r for r in scored if r.reward is not None and correctness.is_correct(r.reward) == is_correct]
        for name, is_correct in (("correct", True), ("wrong", False))
    }
    for name, part in parts.items():
        metrics[f"entropy/{name}"] = _mean(v for r in part for v in r.entropy)
        metrics[f"logprob/{name}"] = _mean(v for r in part for v in r.trainer_logprobs)
        gaps = [a - b for r in part for a, b in zip(r.trainer_logprobs, r.sampler_logprobs, strict=True)]
        metrics["mismatch/mean_abs" if name == "mean" else f"mismatch/mean_abs_{name}"] = _mean(map(abs, gaps))
        if name == "mean":
            metrics["mismatch/max_abs"] = max(map(abs, gaps), default=float("nan"))
            metrics["mismatch/ratio"] = _mean(np.exp(gaps))
            metrics["mismatch/k3"] = _mean(np.expm1(gaps) - np.asarray(gaps))
    return metrics


def verifier_warning(rollouts: list[Rollout]) -> str:
    """What of the verifier a person should know in this step: limits that were hit, completions without a verdict."""
    hits = Counter(r.reason for r in rollouts if r.reason in LIMIT_REASONS)
    faults = [r.reason for r in rollouts if r.reward is None]
    said = [f"{reason} on {hits[reason]}" for reason in LIMIT_REASONS if hits[reason]]
    said += [f"no verdict on {len(faults)} ({faults[0]:.80})"] if faults else []
    return f"verifier: {', '.join(said)} of {len(rollouts)}" if said else ""


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _equal_share(rollouts: list[Rollout]) -> float:
    """Share without contrast of the groups that have rewards: they carry no gradient under group objectives."""
    groups: dict[int, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.group, []).append(rollout.reward + rollout.penalty)
    return _mean(not has_contrast(torch.tensor([rewards], dtype=torch.float64)).item() for rewards in groups.values())
