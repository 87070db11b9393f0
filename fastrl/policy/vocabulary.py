"""Embedding and head, the (V,H) matrices of a model: their gradients go into `.grad` without a (V,H) tensor in between.

The head's is formed chunk by chunk by the loss (`grad_weight` of `linear_policy_loss`). The embedding's has a row for
each token of the micro-batch and no other, and is added as such. Parameters that are sharded are left to FSDP2.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastrl.kernels import choose
from fastrl.policy.model import Policy
from fastrl.policy.sharding import is_sharded


def head_gradient(policy: Policy) -> Tensor | None:
    """The head's float32 `.grad`, zeros where there was none; None where the loss cannot add to it."""
    weight = policy.head().weight
    backend = choose("linear_policy_loss", weight.device, weight.dtype).backend
    if not _is_ours(policy, weight) or weight.grad_dtype != torch.float32 or backend == "reference":
        return None
    return _gradient(weight)


@contextmanager
def sparse_embedding(policy: Policy) -> Iterator[None]:
    """A forward inside it gives the embedding a sparse gradient, and a dense `.grad` to be added to."""
    embedding = policy.model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or not _is_ours(policy, embedding.weight) or embedding.sparse:
        yield
        return
    _gradient(embedding.weight)
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False


def _is_ours(policy: Policy, weight: Tensor) -> bool:
    return weight.requires_grad and not is_sharded(policy)


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype)
    return weight.grad
