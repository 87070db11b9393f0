"""The loss of one token in Triton. `surrogate_term` picks a fused twin of `surrogates` by its name.

The kernel's constant is a name, because constants must be serialisable (vLLM has a hook that writes them as JSON) and
a function is not. A twin is a function, a branch of `surrogate_term` and its number of parameters in NUM_PARAMETERS.
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


@triton.jit
def surrogate_term(logprob, log_ratio, advantage, first, second, third, SURROGATE: tl.constexpr):
    if SURROGATE == "reinforce":
        loss, slope, clipped = reinforce(logprob, log_ratio, advantage, first, second, third)
    elif SURROGATE == "ppo_clip":
        loss, slope, clipped = ppo_clip(logprob, log_ratio, advantage, first, second, third)
    else:
        tl.static_assert(SURROGATE == "cispo")
        loss, slope, clipped = cispo(logprob, log_ratio, advantage, first, second, third)
    return loss, slope, clipped


@triton.jit
def token_term(
    row, logprob, entropy, advantages_ptr, old_ptr, sampler_ptr, ref_ptr, first, second, third, kl_coef, entropy_coef,
    importance_cap, SURROGATE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_KL: tl.constexpr,
):  # fmt: skip
    """(loss, slope in logprob, clipped) of one token, before its weight."""
    advantage = tl.load(advantages_ptr + row)
    log_ratio = 0.0 * logprob
    if HAS_OLD:
        log_ratio = logprob - tl.load(old_ptr + row)
    loss, slope, clipped = surrogate_term(logprob, log_ratio, advantage, first, second, third, SURROGATE)
    if HAS_CAP:
        importance = tl.minimum(tl.exp(logprob - tl.load(sampler_ptr + row)), importance_cap)
        loss *= importance
        slope *= importance
    if HAS_KL:
        raw_ratio = tl.load(ref_ptr + row) - logprob
        log_ref_ratio = tl.minimum(tl.maximum(raw_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
        ref_ratio = tl.exp(log_ref_ratio)
        loss += kl_coef * (ref_ratio - log_ref_ratio - 1)
        slope += tl.where(tl.abs(raw_ratio) > MAX_LOG_RATIO, 0.0, kl_coef * (1 - ref_ratio))
    return loss - entropy_coef * entropy, slope, clipped


NUM_PARAMETERS = {"reinforce": 0, "ppo_clip": 3, "cispo": 1}


def parameters_of(surrogate: str, parameters: tuple[float, ...]) -> tuple[float, float, float]:
    """The three numbers that a kernel takes. ValueError for a surrogate without a twin here, or other parameters."""
    if surrogate not in NUM_PARAMETERS:
        raise ValueError(f"the surrogate must be one of {', '.join(NUM_PARAMETERS)}, got {surrogate!r}")
    if len(parameters) != NUM_PARAMETERS[surrogate]:
        raise ValueError(f"{surrogate} takes {NUM_PARAMETERS[surrogate]} parameters, got {len(parameters)}")
    first, second, third = (*parameters, 0.0, 0.0, 0.0)[:3]
    return first, second, third
