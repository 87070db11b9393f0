"""Which back-end runs an operation, and why: one chooser, which `fastrl doctor` can ask too."""

from dataclasses import dataclass

import torch

NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """backend: the module's name (`reference`, `native`). reason: one phrase for people."""

    backend: str
    reason: str


def choose(operation: str, device: torch.device | str, dtype: torch.dtype) -> Choice:
    """The back-end for `operation` (token_logprobs | policy_loss | linear_policy_loss) on tensors like these."""
    device_type = torch.device(device).type
    if operation == "token_logprobs" and device_type == "cpu" and dtype in NATIVE_DTYPES:
        return Choice("native", "C++ row kernel on CPU")
    if operation == "token_logprobs" and device_type == "cpu":
        return Choice("reference", f"the native kernel takes fp32, bf16 and fp16, not {dtype}")
    return Choice("reference", f"no fused kernel for {operation} on {device_type} yet")
