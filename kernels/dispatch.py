"""Which back-end runs an operation, and why: one chooser, which `fastrl doctor` can ask too."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("reference", "native", "triton")

_forced: str | None = None


@dataclass(frozen=True)
class Choice:
    """backend: reference | native | triton. reason: one phrase for people."""

    backend: str
    reason: str


@contextmanager
def forced_backend(backend: str) -> Iterator[None]:
    """Every operation inside the block runs on `backend`: for tests and comparisons."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


@torch.compiler.assume_constant_result
def has_triton() -> bool:
    """True where Triton is installed; it is not imported to find out."""
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def has_native() -> bool:
    """True where the C++ kernels were built; they are not imported to find out."""
    return importlib.util.find_spec("fastrl._native") is not None


def choose(operation: str, device: torch.device | str, dtype: torch.dtype) -> Choice:
    """The back-end for `operation` (token_logprobs | policy_loss | linear_policy_loss) on tensors like these."""
    if _forced is not None:
        return Choice(_forced, "forced by the caller")
    device_type = torch.device(device).type
    if dtype not in FUSED_DTYPES:
        return Choice("reference", f"the fused kernels take fp32, bf16 and fp16, not {dtype}")
    if device_type == "cpu" and not has_native():
        return Choice("reference", "fastrl._native, the C++ kernels, is not built here")
    if device_type == "cpu":
        return Choice("native", f"C++ row kernel for {operation} on CPU")
    if device_type == "cuda" and has_triton():
        return Choice("triton", f"Triton row kernel for {operation} on CUDA")
    if device_type == "cuda":
        return Choice("reference", "triton is not installed")
    return Choice("reference", f"no fused kernel for {operation} on {device_type}")


def row_kernel(backend: str) -> ModuleType:
    """The module with `score_rows` and `policy_rows` for `backend`; imported on first use."""
    if backend == "native":
        from . import native as kernel
    elif backend == "triton":
        from . import triton_rows as kernel
    else:
        raise ValueError(f"{backend!r} has no row kernel: it must be native or triton")
    return kernel
