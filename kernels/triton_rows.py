"""The Triton row kernels as the chunk driver calls them: the same functions as `native`, without a host sync."""

import torch
import triton
from torch import Tensor

from .losses import TokenLoss
from .rows import HeadTail, RowResults, TokenRows
from .triton_kernels import _policy_rows_kernel, _scale_kernel, _score_rows_kernel
from .triton_losses import NUM_PARAMETERS, parameters_of

fused_surrogates = tuple(NUM_PARAMETERS)
MAX_BLOCK_V = 8192
SCALE_BLOCK = 4096
MAX_SCALE_PROGRAMS = 1024  # enough for any GPU, and few enough to cost nothing where the factor is 1
THREAD_ELEMENTS = 8  # of a block, in the registers of one thread


def launch_shape(vocab: int, *, has_second_sweep: bool) -> dict[str, int]:
    """BLOCK_V and num_warps for rows of `vocab` logits.

    With a second sweep one row fills a multiprocessor (32 warps). Without one, two rows share it, and one computes
    while the other waits. On an H100 both sweeps read from memory, and other shapes differ by 10 % (bench/LOG.md,
    2026-11-28).
    """
    largest = MAX_BLOCK_V if has_second_sweep else MAX_BLOCK_V // 2
    block = min(largest, triton.next_power_of_2(vocab))
    return {"BLOCK_V": block, "num_warps": max(1, min(32, block // (32 * THREAD_ELEMENTS)))}


def _check_logits(logits_NV: Tensor) -> None:
    if logits_NV.stride(1) != 1 and logits_NV.shape[1] > 1:
        raise ValueError(f"triton needs logits contiguous along the vocabulary, got strides {logits_NV.stride()}")


def _check_targets(logits_NV: Tensor, targets_N: Tensor) -> None:
    """On CUDA an assertion on the device: it stops the run at the next synchronisation and costs none here."""
    if targets_N.is_cuda:
        is_inside = ((targets_N >= 0) & (targets_N < logits_NV.shape[1])).all()
        torch._assert_async(is_inside, f"a target is outside the vocabulary [0, {logits_NV.shape[1]})")


def _stride(column: Tensor) -> int:
    return column.stride(0) if column.ndim else 0


def _tail_arguments(logits_NV: Tensor, tail: HeadTail) -> dict:
    is_plain = tail.bias is None and tail.scale == 1.0 and tail.softcap is None
    return {
        "bias_ptr": logits_NV if tail.bias is None else tail.bias,
        "scale": float(tail.scale),
        "softcap": float(tail.softcap or 1.0),
        "HAS_BIAS": tail.bias is not None,
        "TAIL": 0 if is_plain else 1 if tail.softcap is None else 2,
    }


def _first_impossible(logits_NV: Tensor, logprobs_N: Tensor) -> int:
    """Where looking is free (the interpreter); on CUDA the −inf stays in the log-probs."""
    if logits_NV.is_cuda:
        return -1
    impossible = torch.isneginf(logprobs_N).nonzero()
    return int(impossible[0]) if len(impossible) else -1


def score_rows(logits_NV: Tensor, rows: TokenRows, tail: HeadTail, out: RowResults) -> int:
    """Writes out.logprobs and out.entropy. Returns the first row whose target has logit −inf (−1: none, or on CUDA)."""
    num_rows, vocab = logits_NV.shape
    _check_logits(logits_NV)
    _check_targets(logits_NV, rows.targets)
    if num_rows == 0:
        return -1
    _score_rows_kernel[(num_rows,)](
        logits_NV,
        logits_NV.stride(0),
        rows.targets,
        rows.temperature,
        _stride(rows.temperature),
        logprobs_ptr=out.logprobs,
        entropy_ptr=out.entropy,
        vocab=vocab,
        **_tail_arguments(logits_NV, tail),
        **launch_shape(vocab, has_second_sweep=False),
    )
    return _first_impossible(logits_NV, out.logprobs)


def policy_rows(
    logits_NV: Tensor, rows: TokenRows, tail: HeadTail, loss: TokenLoss, out: RowResults, with_gradient: bool
) -> int:
    """Writes `out` and, with_gradient, overwrites the logits with the gradient of Σ losses. Returns as `score_rows`."""
    num_rows, vocab = logits_NV.shape
    _check_logits(logits_NV)
    _check_targets(logits_NV, rows.targets)
    first, second, third = parameters_of(loss.surrogate.name, loss.surrogate_parameters)
    if num_rows == 0:
        return -1
    absent = out.losses  # a pointer that is never read
    _policy_rows_kernel[(num_rows,)](
        logits_NV,
        logits_NV.stride(0),
        rows.targets,
        rows.temperature,
        _stride(rows.temperature),
        rows.weights,
        _stride(rows.weights),
        rows.advantages,
        absent if rows.old_logprobs is None else rows.old_logprobs,
        absent if rows.sampler_logprobs is None else rows.sampler_logprobs,
        absent if rows.ref_logprobs is None else rows.ref_logprobs,
        logprobs_ptr=out.logprobs,
        entropy_ptr=out.entropy,
        losses_ptr=out.losses,
        clipped_ptr=out.clipped.view(torch.uint8),
        vocab=vocab,
        first=first,
        second=second,
        third=third,
        kl_coef=float(loss.kl_coef),
        entropy_coef=float(loss.entropy_coef),
        importance_cap=float(loss.importance_cap or 0.0),
        SURROGATE=loss.surrogate.name,
        HAS_OLD=rows.old_logprobs is not None,
        HAS_CAP=loss.importance_cap is not None,
        HAS_KL=loss.kl_coef != 0,
        HAS_ENTROPY=loss.entropy_coef != 0,
        WITH_GRADIENT=with_gradient,
        **_tail_arguments(logits_NV, tail),
        **launch_shape(vocab, has_second_sweep=with_gradient),
    )
    return _first_impossible(logits_NV, out.logprobs)


def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """gradient ← gradient·upstream; the device decides whether there is anything to do."""
    if not gradient.is_contiguous():
        gradient.mul_(upstream)
    elif gradient.numel():
        num_programs = min(MAX_SCALE_PROGRAMS, triton.cdiv(gradient.numel(), SCALE_BLOCK))
        _scale_kernel[(num_programs,)](gradient, upstream, gradient.numel(), BLOCK=SCALE_BLOCK)
