"""The surrogates of `losses` as Triton functions of one token, passed to the row kernel as a constexpr.

Each maps (logprob, log_ratio, advantage, first, second, third) to (loss, slope = ∂loss/∂logprob, clipped), all fp32
scalars; log_ratio is 0 where there are no old log-probs, the three numbers are the surrogate's own parameters.
"""

import triton
import triton.language as tl

MAX_LOG_RATIO: tl.constexpr = tl.constexpr(20.0)


@triton.jit
def _ratio(log_ratio):
    return tl.exp(tl.minimum(tl.maximum(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))


@triton.jit
def reinforce(logprob, log_ratio, advantage, first, second, third):
    return -advantage * logprob, -advantage, tl.full([], 0, tl.int1)


@triton.jit
def ppo_clip(logprob, log_ratio, advantage, low, high, dual):
    ratio = _ratio(log_ratio)
    bounded = tl.minimum(tl.maximum(ratio, 1 - low), 1 + high)
    loss = tl.maximum(-advantage * ratio, -advantage * bounded)
    clipped = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    bound = -advantage * dual
    is_over = (dual != 0) & (advantage < 0) & (loss > bound)
    clipped = clipped | is_over
    slope = tl.where(clipped | (tl.abs(log_ratio) > MAX_LOG_RATIO), 0.0, -advantage * ratio)
    return tl.where(is_over, bound, loss), slope, clipped


@triton.jit
def cispo(logprob, log_ratio, advantage, cap, second, third):
    ratio = _ratio(log_ratio)
    slope = -tl.minimum(ratio, cap) * advantage
    return slope * logprob, slope, (ratio > cap) & (advantage != 0)


SURROGATE_FUNCTIONS = {"reinforce": reinforce, "ppo_clip": ppo_clip, "cispo": cispo}
