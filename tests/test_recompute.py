"""Activation checkpointing: the same gradients, fewer bytes kept, dropout still off."""

import copy

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import GPT2Config, GPT2LMHeadModel

from fastrl.config.schema import ModelConfig
from fastrl.policy.attention import use_packed_attention
from fastrl.policy.loading import load_for_training
from fastrl.policy.micro_batch import build_micro_batch
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.recompute import blocks_of, recompute_blocks


def batch(is_packed: bool):
    rows = [[20 + (3 * i + t) % 90 for t in range(length)] for i, length in enumerate((40, 23, 9))]
    rollouts = batch_of([Rollout(r[:2], r[2:], 1.0) for r in rows])
    return build_micro_batch(rollouts, np.full(3, 0.1), is_packed=is_packed)


def gradients_and_kept_bytes(model) -> tuple[list[torch.Tensor], int]:
    """Bytes of distinct storages that the forward keeps for the backward, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        row_TH = Policy(model).row(batch(Policy(model).is_packed))
    num_bytes = sum(kept.values())
    loss = (row_TH * torch.linspace(-1, 1, row_TH.shape[1])).square().sum()
    weights = [p for p in model.parameters() if p is not model.get_output_embeddings().weight]
    return list(torch.autograd.grad(loss, weights)), num_bytes


@pytest.mark.parametrize("is_packed", [True, False])
def test_same_gradients_to_the_bit_and_fewer_kept_bytes(tiny_model, is_packed):
    if not is_packed:
        tiny_model.set_attn_implementation("sdpa")
    plain, plain_bytes = gradients_and_kept_bytes(tiny_model)
    assert recompute_blocks(tiny_model) == 2
    ours, our_bytes = gradients_and_kept_bytes(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True)) and any(g.any() for g in ours)
    assert our_bytes < 0.25 * plain_bytes
    assert not tiny_model.training


def test_dropout_stays_off():
    """GPT-2 drops 10 % in training mode: two passes over the recomputed model agree, and with the plain one."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=123, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).eval()
    assert use_packed_attention(model, "sdpa")
    plain, _ = gradients_and_kept_bytes(model)
    recompute_blocks(model)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(gradients_and_kept_bytes(model)[0], plain, strict=True))


def test_a_copy_recomputes_its_own_blocks(tiny_model):
    recompute_blocks(tiny_model)
    before, _ = gradients_and_kept_bytes(tiny_model)
    twin = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(gradients_and_kept_bytes(twin)[0], before, strict=True))


def test_the_setting_wraps_every_block_once(countdown_folder, capsys):
    model = load_for_training(Pretrained(ModelConfig(path=str(countdown_folder), gradient_checkpointing=True)))
    assert "activation checkpointing: 2 blocks" in capsys.readouterr().out
    assert recompute_blocks(model) == 2 and len(blocks_of(model)) == 2
    assert all(not hasattr(block.forward.args[0], "func") for block in blocks_of(model))  # the method, not a wrapper
    with pytest.raises(ValueError, match="Linear does not say what its blocks are"):
        recompute_blocks(nn.Linear(2, 2))
