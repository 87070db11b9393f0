"""Gradients of embedding and head, the (V,H) matrices of a model, added to `.grad` without a (V,H) tensor in between.

The loss adds the head's gradient chunk by chunk (`grad_weight` of `linear_policy_loss`). The embedding's gradient has
rows for the tokens of the micro-batch only. Sharded parameters are left to FSDP2.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastrl.kernels import choose
from fastrl.policy.model import Backbone, Policy
from fastrl.policy.sharding import is_sharded


def head_gradient(policy: Policy) -> Tensor | None:
    """The head's float32 `.grad`, made of zeros if there is none; None if the loss cannot add to it."""
    weight = policy.head().weight
    backend = choose("linear_policy_loss", weight.device, weight.dtype).backend
    if not _is_ours(policy, weight) or weight.grad_dtype != torch.float32 or backend == "reference":
        return None
    return _gradient(weight)


@contextmanager
def sparse_embedding(policy: Backbone) -> Iterator[None]:
    """Inside, a forward gives the embedding a sparse gradient, which its dense `.grad` takes."""
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


def _is_ours(policy: Backbone, weight: Tensor) -> bool:
    return weight.requires_grad and not is_sharded(policy)


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype)
    return weight.grad
