"""The Triton row kernels as the chunk driver calls them: the same functions as `native`, without a host sync."""

from functools import partial

import torch
import triton
from torch import Tensor

from .losses import TokenLoss
from .rows import HeadTail, RowResults, TokenRows
from .triton_cluster import _policy_cluster_kernel, _score_cluster_kernel
from .triton_kernels import _policy_rows_kernel, _scale_kernel, _score_rows_kernel
from .triton_launch import choose_launch
from .triton_losses import NUM_PARAMETERS, parameters_of

fused_surrogates = tuple(NUM_PARAMETERS)
SCALE_BLOCK = 4096
MAX_SCALE_PROGRAMS = 1024  # enough for any GPU, and few enough to cost nothing where the factor is 1


def _stride(column: Tensor) -> int:
    return column.stride(0) if column.ndim else 0


def _launch(kernels: tuple, logits_NV: Tensor, tail: HeadTail, *, with_gradient: bool) -> partial:
    """The kernel of `kernels` (sweeping, cluster) that serves these logits, with the arguments that say how."""
    num_rows, vocab = logits_NV.shape
    if logits_NV.stride(1) != 1 and vocab > 1:
        raise ValueError(f"triton needs logits contiguous along the vocabulary, got strides {logits_NV.stride()}")
    has_bias, has_softcap = tail.bias is not None, tail.softcap is not None
    has_tail = has_bias or has_softcap or tail.scale != 1.0
    launch = choose_launch(
        vocab,
        logits_NV.element_size(),
        logits_NV.device,
        with_gradient=with_gradient,
        has_tail=has_tail,
        has_bias=has_bias,
    )
    return partial(
        kernels[launch.is_cluster][(num_rows,)],
        vocab=vocab,
        bias_ptr=tail.bias if has_bias else logits_NV,
        scale=float(tail.scale),
        softcap=float(tail.softcap or 1.0),
        HAS_BIAS=has_bias,
        TAIL=has_tail + has_softcap,
        **launch.options,
    )


def _first_impossible(logits_NV: Tensor, logprobs_N: Tensor) -> int:
    """Where looking is free (the interpreter); on CUDA the −inf stays in the log-probs."""
    if logits_NV.is_cuda:
        return -1
    impossible = torch.isneginf(logprobs_N).nonzero()
    return int(impossible[0]) if len(impossible) else -1


def score_rows(logits_NV: Tensor, rows: TokenRows, tail: HeadTail, out: RowResults) -> int:
    """Writes out.logprobs and out.entropy. Returns the first row whose target has logit −inf (−1: none, or on CUDA)."""
    launch = _launch((_score_rows_kernel, _score_cluster_kernel), logits_NV, tail, with_gradient=False)
    if len(logits_NV) == 0:
        return -1
    launch(
        logits_NV,
        logits_NV.stride(0),
        rows.targets,
        rows.temperature,
        _stride(rows.temperature),
        logprobs_ptr=out.logprobs,
        entropy_ptr=out.entropy,
    )
    return _first_impossible(logits_NV, out.logprobs)


def policy_rows(
    logits_NV: Tensor, rows: TokenRows, tail: HeadTail, loss: TokenLoss, out: RowResults, with_gradient: bool
) -> int:
    """Writes `out` and, with_gradient, overwrites the logits with the gradient of Σ losses. Returns as `score_rows`."""
    launch = _launch((_policy_rows_kernel, _policy_cluster_kernel), logits_NV, tail, with_gradient=with_gradient)
    first, second, third = parameters_of(loss.surrogate.name, loss.surrogate_parameters)
    if len(logits_NV) == 0:
        return -1
    absent = out.losses  # a pointer that is never read
    launch(
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
    )
    return _first_impossible(logits_NV, out.logprobs)


def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """gradient ← gradient·upstream; the device decides whether there is anything to do."""
    if not gradient.is_contiguous():
        gradient.mul_(upstream)
    elif gradient.numel():
        num_programs = min(MAX_SCALE_PROGRAMS, triton.cdiv(gradient.numel(), SCALE_BLOCK))
        _scale_kernel[(num_programs,)](gradient, upstream, gradient.numel(), BLOCK=SCALE_BLOCK)
