"""The gradients of embedding and head go into `.grad` as they are, and no second (V,H) tensor is made on the way."""

import copy

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastrl.policy.model import Policy
from fastrl.policy.vocabulary import head_gradient, sparse_embedding
from fastrl.rollouts import Rollouts


class LargeTensors(TorchDispatchMode):
    """Names of operations that return new dense storages of at least `num_bytes`."""

    def __init__(self, num_bytes: int):
        super().__init__()
        self.num_bytes, self.seen, self.made = num_bytes, set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_iter((args, kwargs)) if _is_dense(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            is_new = _is_dense(tensor) and tensor.untyped_storage().data_ptr() not in given
            if is_new and tensor.untyped_storage().nbytes() >= self.num_bytes:
                self.made.append(str(func))
        return result


def _is_dense(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def rollouts_of(seed: int) -> Rollouts:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(11, 1500, (n,), generator=generator).tolist() for n in (5, 9, 7)]
    return batch_of([Rollout([30, 31, 30], row, (-1.0) ** i) for i, row in enumerate(rows)])


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_micro_batches_add_what_autograd_adds(tiny_model, is_tied, dtype):
    """Up to rounding: rows of a token that comes twice, and the head's chunks, are added in another order."""
    model = tiny_model.to(dtype)
    if is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    plain, ours = Policy(copy.deepcopy(model)), Policy(model)
    for policy in (plain, ours):
        for parameter in policy.parameters():
            parameter.grad_dtype = torch.float32
    for seed in (0, 1):
        batch = ours.micro_batch(rollouts_of(seed), np.full(3, 0.1))
        plain(batch).loss.backward()
        with sparse_embedding(ours):
            loss = ours(batch, grad_weight=head_gradient(ours)).loss
        with LargeTensors(1500 * 48 * dtype.itemsize) as large:
            loss.backward()
        assert not large.made, large.made
    assert not model.model.embed_tokens.sparse
    for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert b.grad.layout == torch.strided and b.grad.dtype == torch.float32
        assert (a.grad - b.grad).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * a.grad.norm(), name


def test_the_dense_way_makes_what_the_test_looks_for(tiny_model):
    """Without the sparse gradient a (V,H) tensor is seen: the test above can fail."""
    policy = Policy(tiny_model)
    loss = policy(policy.micro_batch(rollouts_of(0), np.full(3, 0.1))).loss
    with LargeTensors(1500 * 48 * 4) as large:
        loss.backward()
    assert any("embedding_dense_backward" in name for name in large.made)


def test_frozen_and_odd_embeddings_are_left_alone(tiny_model):
    policy = Policy(tiny_model)
    embedding = policy.model.get_input_embeddings()
    embedding.weight.requires_grad_(False)
    with sparse_embedding(policy):
        assert not embedding.sparse
    assert embedding.weight.grad is None
