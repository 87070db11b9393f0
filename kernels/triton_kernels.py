"""Triton kernels: a row of logits → log-prob, entropy, loss, and the gradient in the place of the logits.

One program owns one row. The first sweep keeps a running maximum and, per lane, Σ e^u and Σ e^u·u in base 2; then the
loss's slope is known in registers; the second sweep runs in reverse, so that it starts with what a cache still
holds, and overwrites the logits. Row offsets are 64-bit; the number of rows is only the grid and the temperature is
data, so neither compiles anything anew. Formulas: `reference`. Leaves out: several programs per row.
"""

import triton
import triton.language as tl

from .triton_losses import MAX_LOG_RATIO, surrogate_term

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
def _apply_tail(x, bias_ptr, offs_v, mask_v, scale, softcap, TAIL: tl.constexpr, HAS_BIAS: tl.constexpr):
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
def _row_statistics(
    row_ptr, bias_ptr, target, vocab, log2_scale, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """(target logit, maximum, sum, weighted) with u = (x − maximum)·log2_scale, sum = Σ 2^u, weighted = Σ 2^u·u."""
    offs = tl.arange(0, BLOCK_V)
    is_target = (target >= 0) & (target < vocab)  # elsewhere everything becomes NaN, never a plausible number
    raw_target = tl.load(row_ptr + target, mask=is_target, other=float("nan"))
    target_logit = _apply_tail(raw_target, bias_ptr, target, is_target, scale, softcap, TAIL, HAS_BIAS)
    maximum = tl.maximum(target_logit, LOWEST)
    sums = tl.zeros([BLOCK_V], tl.float32)
    weighted = tl.zeros([BLOCK_V], tl.float32)
    following = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf"), eviction_policy="evict_last")
    for start in range(0, vocab, BLOCK_V):
        offs_v = start + offs
        raw = following
        next_v = offs_v + BLOCK_V
        following = tl.load(row_ptr + next_v, mask=next_v < vocab, other=float("-inf"), eviction_policy="evict_last")
        x = _apply_tail(raw, bias_ptr, offs_v, offs_v < vocab, scale, softcap, TAIL, HAS_BIAS)
        if TAIL:
            x = tl.where(offs_v < vocab, x, float("-inf"))
        higher = tl.maximum(maximum, tl.max(x, 0))
        if higher > maximum:  # rare after the first blocks
            shift = (maximum - higher) * log2_scale
            factor = tl.exp2(shift)
            weighted = (weighted + shift * sums) * factor
            sums = sums * factor
            maximum = higher
        u = (x - maximum) * log2_scale
        e = tl.exp2(u)
        weighted += e * tl.maximum(u, LOG2_FLOOR)
        sums += e
    return target_logit, maximum, tl.sum(sums, 0), tl.sum(weighted, 0)


@triton.jit(do_not_specialize=ROW_STRIDES, do_not_specialize_on_alignment=ROW_POINTERS)
def _score_rows_kernel(
    logits_ptr, stride_n, targets_ptr, temperature_ptr, stride_temperature, bias_ptr, logprobs_ptr, entropy_ptr,
    vocab, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    target_logit, maximum, total, weighted = _row_statistics(
        logits_ptr + row * stride_n, bias_ptr, target, vocab, LOG2_E / temperature, scale, softcap,
        TAIL, HAS_BIAS, BLOCK_V,
    )  # fmt: skip
    log_sum = tl.log(total)
    tl.store(logprobs_ptr + row, (target_logit - maximum) / temperature - log_sum)
    tl.store(entropy_ptr + row, log_sum - LN_2 * weighted / total)


@triton.jit
def _token_term(
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


@triton.jit(do_not_specialize=ROW_STRIDES, do_not_specialize_on_alignment=ROW_POINTERS)
def _policy_rows_kernel(
    logits_ptr, stride_n, targets_ptr, temperature_ptr, stride_temperature, weights_ptr, stride_weights,
    advantages_ptr, old_ptr, sampler_ptr, ref_ptr, bias_ptr, logprobs_ptr, entropy_ptr, losses_ptr, clipped_ptr,
    vocab, first, second, third, kl_coef, entropy_coef, importance_cap, scale, softcap,
    SURROGATE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_n
    target = tl.load(targets_ptr + row)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    log2_scale = LOG2_E / temperature
    target_logit, maximum, total, weighted = _row_statistics(
        row_ptr, bias_ptr, target, vocab, log2_scale, scale, softcap, TAIL, HAS_BIAS, BLOCK_V
    )
    log_sum = tl.log(total)
    logprob = (target_logit - maximum) / temperature - log_sum
    entropy = log_sum - LN_2 * weighted / total
    loss, slope, clipped = _token_term(
        row, logprob, entropy, advantages_ptr, old_ptr, sampler_ptr, ref_ptr, first, second, third, kl_coef,
        entropy_coef, importance_cap, SURROGATE, HAS_OLD, HAS_CAP, HAS_KL,
    )  # fmt: skip
    weight = tl.load(weights_ptr + row * stride_weights)
    tl.store(logprobs_ptr + row, logprob)
    tl.store(entropy_ptr + row, entropy)
    tl.store(losses_ptr + row, weight * loss)
    tl.store(clipped_ptr + row, clipped)
    if WITH_GRADIENT:
        slope *= weight / temperature
        entropy_slope = entropy_coef * weight / temperature
        constant = (entropy_slope * (entropy - log_sum) - slope) / total
        per_log2 = entropy_slope * LN_2 / total
        probability = tl.exp(logprob)
        target_gradient = slope * (1 - probability) + entropy_slope * probability * (logprob + entropy)
        least = tl.maximum(NEGLIGIBLE * (tl.abs(slope) + tl.abs(entropy_slope)), SMALLEST)
        is_negligible = tl.abs(target_gradient) < least
        target_gradient = tl.where(is_negligible, 0.0, target_gradient)
        offs = tl.arange(0, BLOCK_V)
        num_blocks = tl.cdiv(vocab, BLOCK_V)
        for block in range(num_blocks):
            offs_v = (num_blocks - 1 - block) * BLOCK_V + offs
            mask_v = offs_v < vocab
            raw = tl.load(row_ptr + offs_v, mask=mask_v, other=float("-inf"), eviction_policy="evict_first")
            x = _apply_tail(raw, bias_ptr, offs_v, mask_v, scale, softcap, TAIL, HAS_BIAS)
            u = (x - maximum) * log2_scale
            e = tl.exp2(u)
            gradient = e * constant
            if HAS_ENTROPY:
                gradient = e * (constant + per_log2 * tl.maximum(u, LOG2_FLOOR))
            gradient = tl.where((u < LOG2_NEGLIGIBLE) | (tl.abs(gradient) < SMALLEST), 0.0, gradient)
            gradient = tl.where(offs_v == target, target_gradient, gradient)
            if TAIL:
                gradient *= scale
                if TAIL == 2:
                    gradient *= 1 - (x / softcap) * (x / softcap)
            tl.store(row_ptr + offs_v, gradient, mask=mask_v, eviction_policy="evict_first")


@triton.jit
def _scale_kernel(gradient_ptr, upstream_ptr, num_elements, BLOCK: tl.constexpr):
    """gradient ← gradient·upstream; a factor of 1 touches no memory, and the host need not know."""
    factor = tl.load(upstream_ptr)
    if factor != 1:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, num_elements, tl.num_programs(0).to(tl.int64) * BLOCK):
            offs = start + tl.arange(0, BLOCK)
            mask = offs < num_elements
            tl.store(gradient_ptr + offs, tl.load(gradient_ptr + offs, mask=mask).to(tl.float32) * factor, mask=mask)
