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
from typing import Literal

import numpy as np

from fastrl.rollouts import Rollouts

ImportanceMode = Literal["off", "token", "sequence", "masked"]
MAX_LOG_RATIO = 20.0  # e^20 is far beyond any cap
NOTICEABLE_NATS = 0.02  # mean |Δlogp| before the first update from which `auto` corrects


def choose_importance(setting: str, calibrated_mean: float) -> tuple[ImportanceMode, str]:
    """(mode, reason). auto: token weights where the calibrated probe says that the two sides differ noticeably."""
    if setting != "auto":
        return setting, "asked for by algorithm.importance.kind"
    if calibrated_mean > NOTICEABLE_NATS:
        return "token", f"mean |Δlogp| before the first update is {calibrated_mean:.3g}, above {NOTICEABLE_NATS}"
    return "off", f"mean |Δlogp| before the first update is {calibrated_mean:.3g}, at most {NOTICEABLE_NATS}"


def importance_weights(
    rollouts: Rollouts, logprobs_N: np.ndarray, mode: Literal["token", "sequence", "masked"], cap: float
) -> np.ndarray:
    """(N,) float64, from log-probs under the policy before the first update."""
    gaps_N = logprobs_N.astype(np.float64) - rollouts.sampler_logprobs_N
    if mode == "token":
        return np.minimum(np.exp(np.minimum(gaps_N, MAX_LOG_RATIO)), cap)
    gaps_R = rollouts.sum_by_rollout(gaps_N)
    if mode == "masked":
        weights_R = np.where(np.abs(gaps_R) <= math.log(cap), np.exp(np.minimum(gaps_R, MAX_LOG_RATIO)), 0.0)
    else:
        weights_R = np.minimum(np.exp(np.minimum(gaps_R, MAX_LOG_RATIO)), cap)
    return rollouts.by_token(weights_R)
