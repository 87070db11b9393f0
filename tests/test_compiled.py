"""Compiled decoder blocks: results within rounding, one compilation for all lengths and layers, said where it fails."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen3Config

from fastrl.config.files import from_dict
from fastrl.config.schema import ModelConfig, TrainConfig
from fastrl.policy.attention import choose_attention, use_packed_attention
from fastrl.policy.compiled import CompiledForward, compile_blocks, wants_compiled
from fastrl.policy.loading import load_for_training
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.recompute import blocks_of, recompute_blocks
from fastrl.policy.soundness import hidden_states_and_gradients

SHAPE = {"vocab_size": 123, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
SHAPE |= {"num_key_value_heads": 2, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
QWEN3 = Qwen3Config(**SHAPE)
GEMMA2 = Gemma2Config(
    **SHAPE,
    sliding_window=8,
    attn_logit_softcapping=2.0,
    query_pre_attn_scalar=3,
    layer_types=["sliding_attention"] * 3,
)


def packed_model(config, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    assert use_packed_attention(model, choose_attention("auto", torch.device("cpu"), dtype, config).path)
    return model


def micro_batch(policy: Policy, lengths: list[int]):
    rows = [[20 + (3 * i + t) % 90 for t in range(length)] for i, length in enumerate(lengths)]
    rollouts = batch_of([Rollout(r[:2], r[2:], 1.0) for r in rows])
    return policy.micro_batch(rollouts, np.full(len(rows), 0.1))


def test_all_layers_and_lengths_share_one_compilation_and_generation_none():
    """Four graphs (norm; queries, keys, values; output; feed-forward) with gradient, and again without."""
    torch._dynamo.reset()
    model = packed_model(QWEN3)
    policy = Policy(model)
    assert compile_blocks(model, is_required=True) == "3 compiled"
    counters.clear()
    for length in (3, 12, 7, 40, 25, 9, 31, 18):
        batch = micro_batch(policy, [length, length + 3, 5])
        policy(batch).loss.backward()
    assert counters["stats"]["unique_graphs"] == 0
    for length in (3, 12, 7, 40, 25):
        policy(micro_batch(policy, [length, 4]), mode="score")
    num_graphs = counters["stats"]["unique_graphs"]
    assert 0 < num_graphs <= 4
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.parametrize(
    "config, dtype",
    [(QWEN3, torch.bfloat16), pytest.param(GEMMA2, torch.float32, marks=pytest.mark.slow)],
    ids=["qwen3", "gemma2"],
)
def test_no_farther_from_float32_than_the_plain_blocks(config, dtype):
    exact = hidden_states_and_gradients(packed_model(config))
    model = packed_model(config, dtype)
    exact = hidden_states_and_gradients(copy.deepcopy(model).float())
    plain = hidden_states_and_gradients(model)
    recompute = copy.deepcopy(model)
    assert compile_blocks(model, is_required=True) == "3 compiled"
    ours = hidden_states_and_gradients(model)
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert (a - c).norm() <= 2 * (b - c).norm() + 1e-6 * c.norm()
    assert not any(isinstance(block.forward, CompiledForward) for block in blocks_of(recompute))


def test_recomputed_blocks_give_the_same_gradients_to_the_bit():
    model = packed_model(QWEN3)
    compile_blocks(model, is_required=True)
    kept = hidden_states_and_gradients(model)
    recompute_blocks(model)
    assert all(torch.equal(a, b) for a, b in zip(hidden_states_and_gradients(model), kept, strict=True))


def test_weights_that_move_to_other_memory_are_seen():
    """What an engine that shares its weights does after loading: new storage, no compilation."""
    model = packed_model(QWEN3)
    compile_blocks(model, is_required=True)
    own, _ = hidden_states_and_gradients(model)
    counters.clear()
    fused = torch.cat([layer.mlp.up_proj.weight.data for layer in model.model.layers])
    for layer, rows in zip(model.model.layers, fused.split(64), strict=True):
        layer.mlp.up_proj.weight.data = rows
    assert torch.equal(hidden_states_and_gradients(model)[0], own)
    fused.zero_()
    assert not torch.equal(hidden_states_and_gradients(model)[0], own)
    assert counters["stats"]["unique_graphs"] == 0


def test_what_cannot_be_compiled_is_said_and_stays_as_it_was(monkeypatch):
    model = packed_model(QWEN3)
    own = hidden_states_and_gradients(model)
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: lambda *a, **k: forward(*a, **k) * 1.01)
    said = compile_blocks(model, is_required=False)
    assert said.startswith("not compiled: Qwen3ForCausalLM has other") and "relative difference 0.0" in said
    with pytest.raises(
        ValueError, match=r"model\.compile = true: Qwen3ForCausalLM has other .*set model\.compile = false"
    ):
        compile_blocks(model, is_required=True)

    def broken(*args, **kwargs):
        raise torch._dynamo.exc.InternalTorchDynamoError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: broken)
    said = compile_blocks(model, is_required=False)
    assert said == "not compiled: Qwen3ForCausalLM cannot be compiled: no C++ compiler"
    assert all(torch.equal(a, b) for a, b in zip(hidden_states_and_gradients(model), own, strict=True))


def test_the_setting(countdown_folder, capsys):
    assert wants_compiled("auto", torch.device("cuda")) and not wants_compiled("auto", torch.device("cpu"))
    assert not wants_compiled(False, torch.device("cuda")) and wants_compiled(True, torch.device("cpu"))
    for value in (True, False, "auto"):
        assert from_dict(TrainConfig, {"model": {"compile": value}}).model.compile == value
    with pytest.raises(ValueError, match=r"model\.compile"):
        from_dict(TrainConfig, {"model": {"compile": "blocks"}})
    settings = ModelConfig(path=str(countdown_folder), compile=True, gradient_checkpointing=True)
    load_for_training(Pretrained(settings))
    assert "blocks: 2 compiled" in (said := capsys.readouterr().out)
    assert said.index("blocks:") < said.index("activation checkpointing: 2 blocks")
    load_for_training(Pretrained(replace(settings, compile="auto")))
    assert "blocks:" not in capsys.readouterr().out
