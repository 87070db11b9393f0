"""Which back-end runs an operation, and why: one chooser, which `fastrl doctor` can ask too."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


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
def native_problem() -> str:
    """Why the C++ kernels cannot run here; empty where they can."""
    from . import native

    return native.problem


def choose(
    operation: str, device: torch.device | str, dtype: torch.dtype, surrogate: str = "", vocab: int = 0
) -> Choice:
    """The back-end for `operation` (token_logprobs | policy_loss | linear_policy_loss) on tensors like these.

    surrogate: the name of the loss's; the reason then says whether the back-end has it fused or reads the logits twice.
    vocab: logits of a row; the reason then says how Triton reads them.
    """
    choice = Choice(_forced, "forced by the caller") if _forced else _usual(operation, device, dtype)
    if choice.backend == "triton" and vocab:
        launch = _launch_reason(operation, torch.device(device), dtype, vocab)
        choice = replace(choice, reason=f"{choice.reason}, {launch}")
    if choice.backend == "reference" or not surrogate or surrogate in row_kernel(choice.backend).fused_surrogates:
        return choice
    return replace(choice, reason=f"{choice.reason}; surrogate {surrogate} in PyTorch, the logits are read twice")


def _launch_reason(operation: str, device: torch.device, dtype: torch.dtype, vocab: int) -> str:
    from .triton_launch import choose_launch

    with_gradient = operation != "token_logprobs"
    return choose_launch(vocab, dtype.itemsize, device, with_gradient=with_gradient).reason


def _usual(operation: str, device: torch.device | str, dtype: torch.dtype) -> Choice:
    device_type = torch.device(device).type
    if dtype not in FUSED_DTYPES:
        return Choice("reference", f"the fused kernels take fp32, bf16 and fp16, not {dtype}")
    if device_type == "cpu" and (problem := native_problem()):
        return Choice("reference", problem)
    if device_type == "cpu":
        return Choice("native", f"C++ row kernel for {operation} on CPU")
    if device_type == "cuda" and has_triton():
        return Choice("triton", f"Triton row kernel for {operation} on CUDA")
    if device_type == "cuda":
        return Choice("reference", "triton is not installed")
    return Choice("reference", f"no fused kernel for {operation} on {device_type}")


def row_kernel(backend: str) -> ModuleType:
    """The module with the row kernels of `backend` (see `chunks`), imported on first use. ImportError without it."""
    if backend == "native":
        from . import native as kernel

        if kernel.problem:
            raise ImportError(kernel.problem)
    elif backend == "triton":
        from . import triton_rows as kernel
    else:
        raise ValueError(f"{backend!r} has no row kernel: it must be native or triton")
    return kernel
