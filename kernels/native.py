"""CPU row kernels from `csrc/`: the only file that imports `fastrl._native`. `reference` is their specification.

Nothing else needs that library. Without it this file can be imported, and `problem` says what is missing.
"""

import torch
from torch import Tensor

try:
    import fastrl._native as _native

    problem = ""
except ModuleNotFoundError:
    problem = "fastrl._native is not built"
except ImportError as error:
    problem = f"fastrl._native cannot be loaded: {error}"

from .losses import TokenLoss
from .rows import HeadTail, RowResults, TokenRows

fused_surrogates = ("reinforce", "ppo_clip", "cispo")
LOSS_COLUMNS = ("advantages", "weights", "old_logprobs", "sampler_logprobs", "ref_logprobs")
LOGIT_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def path() -> str:
    """The instruction set in use: avx512, avx2 or portable."""
    return _native.path()


def force_path(name: str) -> None:
    """Use avx512, avx2 or portable code from now on; `auto`: the fastest. ValueError where it cannot run."""
    _native.force_path(name)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _column(tensor: Tensor | None) -> tuple[int, int]:
    return _address(tensor), 0 if tensor is None or tensor.ndim == 0 else tensor.stride(0)


def _shared_arguments(logits_NV: Tensor, rows: TokenRows, tail: HeadTail, out: RowResults) -> dict:
    if logits_NV.device.type != "cpu" or logits_NV.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"native needs CPU logits in {list(LOGIT_DTYPES.values())}, got {logits_NV.dtype} on {logits_NV.device}"
        )
    num_rows, vocab = logits_NV.shape
    if vocab > 1 and logits_NV.stride(1) != 1:
        raise ValueError(f"native needs logits contiguous along the vocabulary, got strides {logits_NV.stride()}")
    return {
        "logits": logits_NV.data_ptr(),
        "dtype": LOGIT_DTYPES[logits_NV.dtype],
        "num_rows": num_rows,
        "vocab": vocab,
        "row_stride": logits_NV.stride(0),
        "targets": rows.targets.data_ptr(),
        "temperature": _column(rows.temperature),
        "bias": _address(tail.bias),
        "scale": tail.scale,
        "softcap": tail.softcap or 0.0,
        "logprobs": out.logprobs.data_ptr(),
        "entropy": out.entropy.data_ptr(),
        "num_threads": torch.get_num_threads(),
    }


def score_rows(logits_NV: Tensor, rows: TokenRows, tail: HeadTail, out: RowResults) -> int:
    """Writes out.logprobs and out.entropy. Returns the first row whose target has logit −inf, or −1."""
    return _native.score_rows(**_shared_arguments(logits_NV, rows, tail, out))


def policy_rows(
    logits_NV: Tensor, rows: TokenRows, tail: HeadTail, loss: TokenLoss, out: RowResults, with_gradient: bool
) -> int:
    """Writes `out` and, with_gradient, overwrites the logits with the gradient of Σ losses. Returns as `score_rows`."""
    return _native.policy_rows(
        **_shared_arguments(logits_NV, rows, tail, out),
        **{name: _column(getattr(rows, name)) for name in LOSS_COLUMNS},
        surrogate=loss.surrogate.name,
        parameters=loss.surrogate_parameters,
        kl_coef=loss.kl_coef,
        entropy_coef=loss.entropy_coef,
        importance_cap=-1.0 if loss.importance_cap is None else loss.importance_cap,
        with_gradient=with_gradient,
        losses=out.losses.data_ptr(),
        clipped=out.clipped.data_ptr(),
    )


def scale_(gradient: Tensor, upstream: Tensor) -> None:
    """gradient ← gradient·upstream, nothing to do for 1."""
    if (factor := float(upstream)) != 1.0:
        gradient.mul_(factor)
