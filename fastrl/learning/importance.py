"""Importance weights that correct for a sampler whose numerics differ from the trainer's.

The gradient is taken under the trainer's policy π at the time of sampling, the tokens come from the sampler's μ. With
Δ_t = log π_t − log μ_t, per token, and a cap C:

    token      w_t = min(exp Δ_t, C)              truncated importance sampling, per token
    sequence   w   = min(exp Σ_t Δ_t, C)          the same for whole completions
    masked     w   = exp Σ_t Δ_t inside [1/C, C], 0 outside: such completions carry no gradient

Token weights of a mini-batch that no update has preceded are formed inside the loss kernel; all others are two-phase:
log π from a pass before the first update, then w as a factor of the advantage.
"""

import math
from collections.abc import Sequence
from typing import Literal

from fastrl.rollouts import Rollout

ImportanceMode = Literal["off", "token", "sequence", "masked"]
NOTICEABLE_NATS = 0.02  # mean |Δlogp| before the first update from which `auto` corrects


def choose_importance(setting: str, calibrated_mean: float) -> tuple[ImportanceMode, str]:
    """(mode, reason). auto: token weights where the calibrated probe says that the two sides differ noticeably."""
    if setting != "auto":
        return setting, "asked for by algorithm.importance"
    if calibrated_mean > NOTICEABLE_NATS:
        return "token", f"mean |Δlogp| before the first update is {calibrated_mean:.3g}, above {NOTICEABLE_NATS}"
    return "off", f"mean |Δlogp| before the first update is {calibrated_mean:.3g}, at most {NOTICEABLE_NATS}"


def token_weights(logprobs: Sequence[float], sampler_logprobs: Sequence[float], cap: float) -> list[float]:
    """w_t of one completion."""
    return [min(math.exp(min(p - q, 20.0)), cap) for p, q in zip(logprobs, sampler_logprobs, strict=True)]


def sequence_weight(
    logprobs: Sequence[float], sampler_logprobs: Sequence[float], cap: float, *, is_masked: bool
) -> float:
    """w of one completion."""
    difference = sum(logprobs) - sum(sampler_logprobs)
    if is_masked:
        return math.exp(difference) if abs(difference) <= math.log(cap) else 0.0
    return min(math.exp(min(difference, 20.0)), cap)


def attach_weights(
    rollouts: Sequence[Rollout], logprobs: Sequence[Sequence[float]], mode: ImportanceMode, cap: float
) -> None:
    """Set `importance` of each rollout from its log-probs under the policy before the first update."""
    for rollout, row in zip(rollouts, logprobs, strict=True):
        if mode == "token":
            rollout.importance = token_weights(row, rollout.sampler_logprobs, cap)
        else:
            weight = sequence_weight(row, rollout.sampler_logprobs, cap, is_masked=mode == "masked")
            rollout.importance = [weight] * len(row)
