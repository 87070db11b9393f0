"""CPU kernels from `csrc/`: the only file that imports `fastrl._native`. Same functions and meaning as `reference`."""

import torch
from torch import Tensor

from fastrl import _native

from .losses import Head
from .reference import check_rows, head_logits

LOGIT_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def logits_statistics(logits_NV: Tensor, targets_N: Tensor, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy), both (N,) fp32, of CPU logits in fp32, bf16 or fp16. Errors as in the reference."""
    num_rows, vocab = logits_NV.shape
    check_rows(targets_N, num_rows, vocab)
    if logits_NV.device.type != "cpu" or logits_NV.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"native needs CPU logits in {list(LOGIT_DTYPES.values())}, got {logits_NV.dtype} on {logits_NV.device}"
        )
    if logits_NV.stride(-1) != 1 and vocab > 1:
        logits_NV = logits_NV.contiguous()
    targets_N = targets_N.contiguous()
    temperature_N = torch.as_tensor(temperature, dtype=torch.float32).contiguous()
    logprobs_N = torch.empty(num_rows, dtype=torch.float32)
    entropy_N = torch.empty(num_rows, dtype=torch.float32)
    _native.token_logprobs(
        logits_NV.data_ptr(),
        LOGIT_DTYPES[logits_NV.dtype],
        num_rows,
        vocab,
        logits_NV.stride(0),
        targets_N.data_ptr(),
        temperature_N.data_ptr(),
        1 if temperature_N.ndim else 0,
        logprobs_N.data_ptr(),
        entropy_N.data_ptr(),
        torch.get_num_threads(),
    )
    if torch.isneginf(logprobs_N).any():
        row = int(torch.isneginf(logprobs_N).nonzero()[0])
        raise ValueError(f"row {row}: the logit of target {int(targets_N[row])} is -inf, it cannot have been sampled")
    return logprobs_N, entropy_N


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) of `targets`, no gradient; see `fastrl.kernels.token_logprobs`."""
    with torch.no_grad():
        return logits_statistics(head_logits(hidden, head), targets, temperature)
