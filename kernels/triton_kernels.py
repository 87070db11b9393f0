"""Triton kernels that sweep: a row of logits → log-prob, entropy, loss, and the gradient in the place of the logits.

One program owns one row. The first sweep keeps a running maximum and, per lane, Σ e^u and Σ e^u·u in base 2; then the
loss's slope is known in registers; the second sweep runs in reverse, so that it starts with what a cache still
holds, and overwrites the logits. Row offsets are 64-bit; the number of rows is only the grid and the temperature is
data, so neither compiles anything anew. Leaves out: several programs per row (`triton_cluster` has them).
"""

import triton
import triton.language as tl

from .triton_formulas import (
    LOG2_E,
    LOG2_FLOOR,
    LOWEST,
    ROW_POINTERS,
    ROW_STRIDES,
    apply_tail,
    gradient_of,
    store_loss,
    store_scores,
    target_logit_of,
)


@triton.jit
def _row_statistics(
    row_ptr, bias_ptr, target, vocab, log2_scale, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """(target logit, maximum, sum, weighted) with u = (x − maximum)·log2_scale, sum = Σ 2^u, weighted = Σ 2^u·u."""
    offs = tl.arange(0, BLOCK_V)
    target_logit = target_logit_of(row_ptr, bias_ptr, target, vocab, scale, softcap, TAIL, HAS_BIAS)
    maximum = tl.maximum(target_logit, LOWEST)
    sums = tl.zeros([BLOCK_V], tl.float32)
    weighted = tl.zeros([BLOCK_V], tl.float32)
    following = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf"), eviction_policy="evict_last")
    for start in range(0, vocab, BLOCK_V):
        offs_v = start + offs
        raw = following
        next_v = offs_v + BLOCK_V
        following = tl.load(row_ptr + next_v, mask=next_v < vocab, other=float("-inf"), eviction_policy="evict_last")
        x = apply_tail(raw, bias_ptr, offs_v, offs_v < vocab, scale, softcap, TAIL, HAS_BIAS)
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
    store_scores(row, target_logit, maximum, total, weighted, temperature, logprobs_ptr, entropy_ptr)


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
    logprob, entropy, log_sum = store_scores(
        row, target_logit, maximum, total, weighted, temperature, logprobs_ptr, entropy_ptr
    )
    constant, per_log2, target_gradient = store_loss(
        row, logprob, entropy, log_sum, total, temperature, weights_ptr, stride_weights, advantages_ptr, old_ptr,
        sampler_ptr, ref_ptr, losses_ptr, clipped_ptr, first, second, third, kl_coef, entropy_coef, importance_cap,
        SURROGATE, HAS_OLD, HAS_CAP, HAS_KL,
    )  # fmt: skip
    if WITH_GRADIENT:
        offs = tl.arange(0, BLOCK_V)
        num_blocks = tl.cdiv(vocab, BLOCK_V)
        for block in range(num_blocks):
            offs_v = (num_blocks - 1 - block) * BLOCK_V + offs
            mask_v = offs_v < vocab
            raw = tl.load(row_ptr + offs_v, mask=mask_v, other=float("-inf"), eviction_policy="evict_first")
            x = apply_tail(raw, bias_ptr, offs_v, mask_v, scale, softcap, TAIL, HAS_BIAS)
            gradient = gradient_of(
                x, (x - maximum) * log2_scale, offs_v == target, constant, per_log2, target_gradient, scale, softcap,
                HAS_ENTROPY, TAIL,
            )  # fmt: skip
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
