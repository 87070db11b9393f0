"""What "eager" means in every table: the usual PyTorch of an RL trainer, and its torch.compile.

fp32 log_softmax, gather, entropy without gradient, advantage-weighted sum, backward by autograd. Logits (N,V), hidden
(N,H), weight (V,H) in bf16; targets (N,) int64; coefficients (N,) fp32 (advantage times token weight).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def logits_loss(logits: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, logprobs, entropy)."""
    logprobs_NV = torch.log_softmax(logits.float(), dim=-1)
    logprobs = logprobs_NV.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropy = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return -(coefficients * logprobs).sum(), logprobs.detach(), entropy


def linear_loss(hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, logprobs, entropy)."""
    return logits_loss(hidden @ weight.t(), targets, coefficients)


def scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(logprobs, entropy) without gradient."""
    with torch.no_grad():
        return logits_loss(logits, targets, torch.ones_like(targets, dtype=torch.float32))[1:]


@functools.cache
def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)
