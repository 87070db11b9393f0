"""Weights that vLLM and the trainer share: every tensor of every family, and proofs that see staleness."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from rollout_cases import credited
from sampler_gap import mean_gap
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.rollouts import Rollouts
from fastrl.sampling.protocol import SamplingSettings, StaleWeightsError, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.choose import share_weights
from fastrl.sampling.weights.map import bit_checksum, gaps
from fastrl.sampling.weights.shared import CopiedWeights

pytestmark = pytest.mark.vllm
NUM_PARAMETERS = {"qwen2.5": 26, "qwen3": 25, "llama": 29, "gemma3": 28, "mistral": 20}
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12] * 9]
SETTINGS = SamplingSettings(num_samples=4, max_new_tokens=8)


@dataclass
class Shared:
    model: PreTrainedModel
    sampler: VllmSampler
    said: list[str]


@pytest.fixture
def share(family_folder):
    """share(family, mode, dtype): a context with a model and a vLLM sampler over its weights."""

    @contextmanager
    def make(family: str, mode: str = "auto", dtype: torch.dtype = torch.float32) -> Iterator[Shared]:
        folder = str(family_folder(family))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        engine = Engine(EngineSettings(folder, dtype, 640, 16, 16 << 20))
        said: list[str] = []
        try:
            weights = share_weights(mode, engine, model, said.append)
            yield Shared(model, VllmSampler(engine, weights, stop_token_ids=[1]), said)
        finally:
            engine.close()

    return make


def update(model: PreTrainedModel, rollouts: Rollouts, lr: float = 1e-2) -> None:
    """Three optimizer steps that make the sampled completions more likely."""
    policy = Policy(model)
    optimizer = MasterOptimizer(policy, OptimizerConfig(lr=lr), 3)
    batch, weights_R = credited(rollouts), np.full(len(rollouts), 0.01)
    for step in (1, 2, 3):
        optimizer.start_step(step)
        policy(policy.micro_batch(batch, weights_R)).loss.backward()
        _, has_moved = optimizer.step()
        assert has_moved


def assert_fresh_after_updates(shared: Shared, tolerance: float) -> None:
    """Fresh before and after; the update is far larger than the tolerance, so stale weights could not pass."""
    rollouts = sample(shared.sampler, PROMPTS, SETTINGS, [1, 2, 3])
    assert mean_gap(shared.model, rollouts) < tolerance
    update(shared.model, rollouts)
    assert mean_gap(shared.model, rollouts) > 20 * tolerance
    shared.sampler.publish(1)
    shared.sampler.prove_fresh(1)
    again = sample(shared.sampler, PROMPTS, SETTINGS, [1, 2, 3])
    assert mean_gap(shared.model, again) < tolerance
    assert set(again.weight_versions_R) == {1}


@pytest.mark.parametrize("family", NUM_PARAMETERS)
def test_every_parameter_is_vllms_own_tensor(share, family_folder, family):
    with share(family) as shared:
        parameters = dict(shared.model.named_parameters())
        assert len(parameters) == NUM_PARAMETERS[family] == shared.sampler.weights.num_tensors
        assert shared.said == [f"sampler weights: alias, {len(parameters)}/{len(parameters)} tensors are vLLM's own"]
        served = {s.parameter.untyped_storage().data_ptr() for s in shared.sampler.engine.slots()}
        assert {p.untyped_storage().data_ptr() for p in parameters.values()} == served
        for name, original in AutoModelForCausalLM.from_pretrained(family_folder(family)).named_parameters():
            assert parameters[name].equal(original), name
        assert shared.sampler.publish(0) == 0
        assert_fresh_after_updates(shared, 1e-5)


def test_bfloat16_weights_are_the_rounded_masters_in_shared_memory(share):
    with share("qwen3", "alias", torch.bfloat16) as shared:
        assert_fresh_after_updates(shared, 0.02)
        policy = Policy(shared.model)
        optimizer = MasterOptimizer(policy, OptimizerConfig(lr=1e-6), 1)
        rollouts = sample(shared.sampler, PROMPTS, SETTINGS, [1, 2, 3])
        policy(policy.micro_batch(credited(rollouts), np.ones(len(rollouts)))).loss.backward()
        optimizer.step()
        shared.sampler.prove_fresh(1)
        served = {n: s.parameter[a:b] for s in shared.sampler.engine.slots() for n, (a, b) in s.rows.items()}
        for name, master in optimizer.masters.items():
            assert served[name.removeprefix("model.")].equal(master.bfloat16()), name


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2"])
def test_copy_takes_the_trainers_weights_bit_for_bit(share, family):
    with share(family, "copy") as shared:
        assert type(shared.sampler.weights) is CopiedWeights and shared.sampler.shares_weights
        ours = {p.data_ptr() for p in shared.model.parameters()}
        assert not ours & {s.parameter.data_ptr() for s in shared.sampler.engine.slots()}
        assert shared.sampler.publish(0) == sum(p.nbytes for p in shared.model.parameters())
        assert_fresh_after_updates(shared, 1e-5)


def test_a_model_that_does_not_map_is_copied_with_the_reason_said(share):
    with share("gpt2") as shared:
        assert type(shared.sampler.weights) is CopiedWeights and not shared.sampler.weights.has_map
        assert "sharing is not possible" in shared.said[0] and "attn.c_attn.weight: (64, 192)" in shared.said[0]
    with pytest.raises(ValueError, match="'alias' is not possible: 8 gaps"), share("gpt2", "alias"):
        pass


def test_experts_that_the_cpu_back_end_packs_are_refused(share):
    """Seen: after load_weights their tensors hold the new values, and the engine still computes with the old ones."""
    with (
        pytest.raises(ValueError, match=r"packed copy of .*experts.*w13_weight \(4, 128, 64\).*'embedded' can"),
        share("qwen3-moe", "auto", torch.bfloat16),
    ):
        pass


def test_other_values_on_either_side_are_a_gap(share):
    with share("qwen3", "copy") as shared:
        slots = shared.sampler.engine.slots()
        parameters = dict(shared.model.named_parameters())
        assert gaps(parameters, slots) == []
        with torch.no_grad():
            parameters["model.layers.1.self_attn.k_proj.weight"][0, 0].mul_(-1)
        assert gaps(parameters, slots) == ["model.layers.1.self_attn.k_proj.weight: other values in the served model"]


def test_a_tensor_that_was_replaced_is_stale(share):
    with share("llama", "alias") as shared:
        parameter = shared.model.model.layers[1].mlp.up_proj.weight
        alias = parameter.data
        parameter.data = alias.clone()
        with pytest.raises(StaleWeightsError, match=r"1 of 29 .* first model.layers.1.mlp.up_proj.weight"):
            shared.sampler.prove_fresh(0)
        parameter.data = alias
        shared.sampler.prove_fresh(0)

        def replace(model: torch.nn.Module) -> None:
            layer = model.model.layers[0].self_attn.qkv_proj
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)

        shared.sampler.engine.apply_model(replace)
        with pytest.raises(StaleWeightsError, match=r"3 of 29 .* first model.layers.0.self_attn.q_proj.weight"):
            shared.sampler.prove_fresh(0)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_copy_that_was_skipped_is_stale(share, family, monkeypatch):
    with share(family, "copy") as shared:
        rollouts = sample(shared.sampler, PROMPTS, SETTINGS, [1, 2, 3])
        shared.sampler.prove_fresh(0)
        update(shared.model, rollouts)
        with pytest.raises(StaleWeightsError, match="version 0, the trainer is at 1: an update was not published"):
            shared.sampler.prove_fresh(1)
        load, last = shared.sampler.engine.load_weights, len(list(shared.model.parameters())) - 1
        monkeypatch.setattr(shared.sampler.engine, "load_weights", lambda weights: load(weights[:last]))
        shared.sampler.publish(1)
        with pytest.raises(StaleWeightsError, match="load_weights skipped or changed"):
            shared.sampler.prove_fresh(1)


def test_the_checksum_sees_one_bit_and_no_order(share):
    a, b = torch.randn(300, 7), torch.randn(11)
    assert bit_checksum([a, b]) == bit_checksum([b, a.t().contiguous()[:, :120], a.t()[:, 120:]])
    flipped = a.clone()
    flipped.view(torch.int32)[17, 3] ^= 1
    assert bit_checksum([flipped, b]) != bit_checksum([a, b])
    swapped = a.clone()
    swapped[0, 0], swapped[0, 1] = torch.nextafter(a[0, 0], a[0, 0] + 1), torch.nextafter(a[0, 1], a[0, 1] - 1)
    assert bit_checksum([swapped, b]) != bit_checksum([a, b])


def test_weights_of_a_copy_have_one_set_more(share):
    with share("qwen3", "copy") as copied:
        assert isinstance(copied.sampler.weights, CopiedWeights)
        num_copied = sum(s.parameter.untyped_storage().nbytes() for s in copied.sampler.engine.slots())
    with share("qwen3", "alias") as aliased:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in aliased.model.parameters()}
        assert sum(storages.values()) == num_copied


def test_aliasing_frees_what_the_trainer_held(family_folder):
    """Every old storage dies with the re-pointing; on a GPU its memory is the driver's again."""
    folder, device = str(family_folder("qwen3")), "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    old = [weakref.ref(parameter.untyped_storage()) for parameter in model.parameters()]
    engine = Engine(EngineSettings(folder, dtype, 640, 16, 16 << 20))
    reserved = torch.cuda.memory_reserved() if device == "cuda" else 1
    share_weights("alias", engine, model, str)
    gc.collect()
    assert len(old) == NUM_PARAMETERS["qwen3"] and not [ref for ref in old if ref() is not None]
    assert device == "cpu" or torch.cuda.memory_reserved() < reserved
    engine.close()
