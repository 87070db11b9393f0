"""The arithmetic of a row in Triton, which all row kernels share: the head's tail, log-prob and entropy, the gradient.

u = (x − maximum)·log2_scale is a logit in base 2, with log2_scale = log2(e)/temperature. Formulas: `reference`.
"""

import triton
import triton.language as tl

from .triton_losses import token_term

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)
LOG2_FLOOR: tl.constexpr = tl.constexpr(-1000.0)  # 2^u is 0 there, and 0·(−inf) never arises
LOG2_NEGLIGIBLE: tl.constexpr = tl.constexpr(-64.0)  # a vocabulary of such probabilities changes nothing: gradient 0
NEGLIGIBLE: tl.constexpr = tl.constexpr(2.0**-64)
SMALLEST: tl.constexpr = tl.constexpr(2.0**-122)  # of a gradient: products with it stay away from denormals

# Pointers to one number per row begin wherever a chunk begins: a kernel specialised on their alignment would be
# compiled anew for other row counts. Their strides are 0 (one number for all rows) or 1.
ROW_POINTERS = [
    "targets_ptr", "temperature_ptr", "weights_ptr", "advantages_ptr", "old_ptr", "sampler_ptr", "ref_ptr",
    "logprobs_ptr", "entropy_ptr", "losses_ptr", "clipped_ptr",
]  # fmt: skip
ROW_STRIDES = ["stride_temperature", "stride_weights"]

# TAIL says what the head does after its product: 0 nothing, 1 bias and scale, 2 a softcap too.


@triton.jit
def apply_tail(x, bias_ptr, offs_v, mask_v, scale, softcap, TAIL: tl.constexpr, HAS_BIAS: tl.constexpr):
    """fp32 logits after the head's bias, scale and softcap."""
    x = x.to(tl.float32)
    if TAIL:
        if HAS_BIAS:
            x += tl.load(bias_ptr + offs_v, mask=mask_v, other=0.0)
        x *= scale
        if TAIL == 2:
            e = tl.exp2(tl.abs(x) * (-2 * LOG2_E / softcap))
            capped = softcap * (1 - e) / (1 + e)
            x = tl.where(x < 0, -capped, capped)
    return x


@triton.jit
def target_logit_of(
    row_ptr, bias_ptr, target, vocab, scale, softcap, TAIL: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """The target's logit; NaN for a target outside [0,V), so that its results are never plausible numbers."""
    is_inside = (target >= 0) & (target < vocab)
    raw = tl.load(row_ptr + target, mask=is_inside, other=float("nan"))
    return apply_tail(raw, bias_ptr, target, is_inside, scale, softcap, TAIL, HAS_BIAS)


@triton.jit
def store_scores(row, target_logit, maximum, total, weighted, temperature, logprobs_ptr, entropy_ptr):
    """(log-prob, entropy, log of the sum) from total = Σ 2^u and weighted = Σ 2^u·u; the first two are stored."""
    log_sum = tl.log(total)
    logprob = (target_logit - maximum) / temperature - log_sum
    entropy = log_sum - LN_2 * weighted / total
    tl.store(logprobs_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    return logprob, entropy, log_sum


@triton.jit
def store_loss(
    row, logprob, entropy, log_sum, total, temperature, weights_ptr, stride_weights, advantages_ptr, old_ptr,
    sampler_ptr, ref_ptr, losses_ptr, clipped_ptr, first, second, third, kl_coef, entropy_coef, importance_cap,
    SURROGATE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_KL: tl.constexpr,
):  # fmt: skip
    """Stores the weighted loss and clipped. Returns the row's numbers of `gradient_of`: (constant, per_log2, target's).

    The gradient of a logit is 2^u·(constant + per_log2·u), the target's is its own.
    """
    loss, slope, clipped = token_term(
        row, logprob, entropy, advantages_ptr, old_ptr, sampler_ptr, ref_ptr, first, second, third, kl_coef,
        entropy_coef, importance_cap, SURROGATE, HAS_OLD, HAS_CAP, HAS_KL,
    )  # fmt: skip
    weight = tl.load(weights_ptr + row * stride_weights)
    tl.store(losses_ptr + row, weight * loss)
    tl.store(clipped_ptr + row, clipped)
    slope *= weight / temperature
    entropy_slope = entropy_coef * weight / temperature
    constant = (entropy_slope * (entropy - log_sum) - slope) / total
    per_log2 = entropy_slope * LN_2 / total
    probability = tl.exp(logprob)
    target_gradient = slope * (1 - probability) + entropy_slope * probability * (logprob + entropy)
    least = tl.maximum(NEGLIGIBLE * (tl.abs(slope) + tl.abs(entropy_slope)), SMALLEST)
    return constant, per_log2, tl.where(tl.abs(target_gradient) < least, 0.0, target_gradient)


@triton.jit
def gradient_of(
    x, u, is_target, constant, per_log2, target_gradient, scale, softcap,
    HAS_ENTROPY: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The loss's gradient in the raw logits, which the head's tail made x of."""
    e = tl.exp2(u)
    gradient = e * constant
    if HAS_ENTROPY:
        gradient = e * (constant + per_log2 * tl.maximum(u, LOG2_FLOOR))
    gradient = tl.where((u < LOG2_NEGLIGIBLE) | (tl.abs(gradient) < SMALLEST), 0.0, gradient)
    gradient = tl.where(is_target, target_gradient, gradient)
    if TAIL:
        gradient *= scale
        if TAIL == 2:
            gradient *= 1 - (x / softcap) * (x / softcap)
    return gradient
