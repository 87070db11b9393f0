"""Triton kernels that read a row of logits once: a cluster of CTAs (one program, `num_ctas`) holds it in registers.

NUM_TILES tiles of TILE_V logits spread over the threads of all CTAs: every thread holds a few logits of each tile, and
reduces its own over the tiles first, so that the CTAs exchange numbers twice a row: the maximum, and the two sums. The
gradient is formed from the registers and overwrites the logits. TILE_V·(NUM_TILES − 1) < V ≤ TILE_V·NUM_TILES.
Results are those of `triton_kernels`, up to the order of the sums. More than one CTA needs Triton 3.9 and sm_90.
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
def _load_tiles(row_ptr, vocab, TILE_V: tl.constexpr, NUM_TILES: tl.constexpr):
    """The row as a tuple of tiles. Only the last one can reach beyond the row; it reads −inf there."""
    offs = tl.arange(0, TILE_V)
    tiles = ()
    for tile in tl.static_range(NUM_TILES - 1):
        tiles += (tl.load(row_ptr + tile * TILE_V + offs),)
    offs_v = (NUM_TILES - 1) * TILE_V + offs
    tiles += (tl.load(row_ptr + offs_v, mask=offs_v < vocab, other=float("-inf")),)
    return tiles


@triton.jit
def _logits_of(
    tiles, tile: tl.constexpr, bias_ptr, vocab, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, TILE_V: tl.constexpr,
):  # fmt: skip
    """fp32 logits of one tile after the head's tail, −inf beyond the row."""
    offs_v = tile * TILE_V + tl.arange(0, TILE_V)
    x = apply_tail(tiles[tile], bias_ptr, offs_v, offs_v < vocab, scale, softcap, TAIL, HAS_BIAS)
    if TAIL:
        x = tl.where(offs_v < vocab, x, float("-inf"))
    return x


@triton.jit
def _after(number, result):
    """`number`, which the compiler takes for unknown before the finite `result`.

    What is made of it is made anew there: the row stays in registers as it was read, not as fp32 intermediates.
    """
    return number + 0.0 * result


@triton.jit
def _statistics(
    tiles, bias_ptr, vocab, log2_scale, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, TILE_V: tl.constexpr, NUM_TILES: tl.constexpr,
):  # fmt: skip
    """(maximum, sum, weighted) with u = (x − maximum)·log2_scale, sum = Σ 2^u, weighted = Σ 2^u·u."""
    highest = tl.full([TILE_V], LOWEST, tl.float32)
    for tile in tl.static_range(NUM_TILES):
        x = _logits_of(tiles, tile, bias_ptr, vocab, scale, softcap, TAIL, HAS_BIAS, TILE_V)
        highest = tl.maximum(highest, x)
    sums = tl.zeros([TILE_V], tl.float32)
    weighted = tl.zeros([TILE_V], tl.float32)
    for tile in tl.static_range(NUM_TILES):
        x = _logits_of(tiles, tile, bias_ptr, vocab, scale, softcap, TAIL, HAS_BIAS, TILE_V)
        u = (x - highest) * log2_scale
        e = tl.exp2(u)
        weighted += e * tl.maximum(u, LOG2_FLOOR)
        sums += e
    maximum = tl.max(highest, 0)
    shift = tl.maximum((highest - maximum) * log2_scale, LOG2_FLOOR)
    factor = tl.exp2(shift)
    both = tl.sum(tl.join(sums * factor, (weighted + shift * sums) * factor), 0)  # one exchange between the CTAs
    total, total_weighted = tl.split(both)
    return maximum, total, total_weighted


@triton.jit(do_not_specialize=ROW_STRIDES, do_not_specialize_on_alignment=ROW_POINTERS)
def _score_cluster_kernel(
    logits_ptr, stride_n, targets_ptr, temperature_ptr, stride_temperature, bias_ptr, logprobs_ptr, entropy_ptr,
    vocab, scale, softcap,
    TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, TILE_V: tl.constexpr, NUM_TILES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_n
    tiles = _load_tiles(row_ptr, vocab, TILE_V, NUM_TILES)
    target = tl.load(targets_ptr + row)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    target_logit = target_logit_of(row_ptr, bias_ptr, target, vocab, scale, softcap, TAIL, HAS_BIAS)
    maximum, total, weighted = _statistics(
        tiles, bias_ptr, vocab, LOG2_E / temperature, scale, softcap, TAIL, HAS_BIAS, TILE_V, NUM_TILES
    )
    store_scores(row, target_logit, maximum, total, weighted, temperature, logprobs_ptr, entropy_ptr)


@triton.jit(do_not_specialize=ROW_STRIDES, do_not_specialize_on_alignment=ROW_POINTERS)
def _policy_cluster_kernel(
    logits_ptr, stride_n, targets_ptr, temperature_ptr, stride_temperature, weights_ptr, stride_weights,
    advantages_ptr, old_ptr, sampler_ptr, ref_ptr, bias_ptr, logprobs_ptr, entropy_ptr, losses_ptr, clipped_ptr,
    vocab, first, second, third, kl_coef, entropy_coef, importance_cap, scale, softcap,
    SURROGATE: tl.constexpr, HAS_OLD: tl.constexpr, HAS_CAP: tl.constexpr, HAS_KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, TAIL: tl.constexpr, HAS_BIAS: tl.constexpr, WITH_GRADIENT: tl.constexpr,
    TILE_V: tl.constexpr, NUM_TILES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_n
    tiles = _load_tiles(row_ptr, vocab, TILE_V, NUM_TILES)
    target = tl.load(targets_ptr + row)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    target_logit = target_logit_of(row_ptr, bias_ptr, target, vocab, scale, softcap, TAIL, HAS_BIAS)
    maximum, total, weighted = _statistics(
        tiles, bias_ptr, vocab, LOG2_E / temperature, scale, softcap, TAIL, HAS_BIAS, TILE_V, NUM_TILES
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
        log2_scale, scale = _after(LOG2_E / temperature, total), _after(scale, total)
        for tile in tl.static_range(NUM_TILES):
            offs_v = tile * TILE_V + tl.arange(0, TILE_V)
            x = _logits_of(tiles, tile, bias_ptr, vocab, scale, softcap, TAIL, HAS_BIAS, TILE_V)
            gradient = gradient_of(
                x, (x - maximum) * log2_scale, offs_v == target, constant, per_log2, target_gradient, scale, softcap,
                HAS_ENTROPY, TAIL,
            )  # fmt: skip
            if tile == NUM_TILES - 1:
                tl.store(row_ptr + offs_v, gradient, mask=offs_v < vocab)
            else:
                tl.store(row_ptr + offs_v, gradient)
