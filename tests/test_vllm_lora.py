"""LoRA through vLLM: the base is its own memory, it samples with each update's adapter, staleness stops a run."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import credited
from safetensors.torch import load_file
from sampler_gap import mean_gap
from transformers import AutoModelForCausalLM, PreTrainedModel

from fastrl.cli import main
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    ScratchConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.policy.lora import adapters, adapters_off, attach, base_parameters
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.run.training import train
from fastrl.sampling.protocol import SamplingSettings, StaleWeightsError, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.adapters import AdapterWeights
from fastrl.sampling.weights.choose import share_weights
from fastrl.sampling.weights.map import is_same_memory, places

pytestmark = pytest.mark.vllm
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12] * 9]
SETTINGS = SamplingSettings(num_samples=4, max_new_tokens=8)
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")  # k_proj and gate_proj are parts of fused layers


@dataclass
class Served:
    model: PreTrainedModel
    sampler: VllmSampler
    said: list[str]


@pytest.fixture
def serve(family_folder):
    """serve(family): a context with a model that has adapters (rank 3, α/r = 2) and a vLLM sampler for it."""

    @contextmanager
    def make(
        family: str, *, dtype=torch.float32, targets=TARGETS, engine_targets=(), alpha=6.0, mode="auto"
    ) -> Iterator[Served]:
        folder = str(family_folder(family))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        attach(model, ModelConfig(lora_rank=3, lora_alpha=alpha, lora_targets=targets), None, seed=0)
        lora = {"lora_rank": 3, "lora_targets": engine_targets or targets}
        engine = Engine(EngineSettings(folder, dtype, 640, 16, 16 << 20, **lora))
        said: list[str] = []
        try:
            weights = share_weights(mode, engine, model, said.append)
            yield Served(model, VllmSampler(engine, weights, stop_token_ids=[1]), said)
        finally:
            engine.close()

    return make


def update(model: PreTrainedModel, rollouts: Rollouts) -> None:
    """Three optimizer steps that make the sampled completions more likely."""
    policy = Policy(model)
    optimizer = MasterOptimizer(policy, OptimizerConfig(lr=3e-2), 3)
    batch, weights_R = credited(rollouts), np.full(len(rollouts), 0.01)
    for step in (1, 2, 3):
        optimizer.start_step(step)
        policy(policy.micro_batch(batch, weights_R)).loss.backward()
        assert optimizer.step()[1]


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        ("qwen3", torch.float32, 1e-5),
        ("qwen2.5", torch.float32, 1e-5),
        pytest.param("gemma3", torch.float32, 1e-5, marks=pytest.mark.slow),
        ("qwen3", torch.bfloat16, 0.02),
    ],
)
def test_every_update_is_what_vllm_samples_with(serve, family_folder, family, dtype, tolerance):
    with serve(family, dtype=dtype) as served:
        model, sampler = served.model, served.sampler
        original = AutoModelForCausalLM.from_pretrained(family_folder(family), dtype=dtype)
        rollouts = sample(sampler, PROMPTS, SETTINGS, [1, 2, 3])
        assert mean_gap(model, rollouts) < tolerance
        update(model, rollouts)
        assert mean_gap(model, rollouts) > 20 * tolerance
        num_bytes = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        assert sampler.publish(1) == num_bytes
        sampler.prove_fresh(1)
        again = sample(sampler, PROMPTS, SETTINGS, [1, 2, 3])
        assert mean_gap(model, again) < tolerance and set(again.weight_versions_R) == {1}
        with adapters_off(model):
            assert mean_gap(model, again) > 20 * tolerance
        base, place = base_parameters(model), places(sampler.engine.slots())
        assert base.keys() == place.keys() == dict(original.named_parameters()).keys()
        for name, parameter in original.named_parameters():
            assert is_same_memory(base[name], place[name].view()) and base[name].equal(parameter), name


def test_the_adapter_in_vllms_buffers_is_the_trainers(serve):
    with serve("qwen3") as served:
        update(served.model, sample(served.sampler, PROMPTS, SETTINGS, [1, 2, 3]))
        served.sampler.publish(1)
        slots, layers = served.sampler.engine.adapter_slots(), adapters(served.model)
        assert len(layers) == 10 and len(slots) == 14 and layers.keys() <= slots.keys()
        for name, (A, B) in slots.items():
            assert A.shape[0] == B.shape[1] == 8  # vLLM's next rank
            if name in layers:
                assert A[:3].equal(layers[name].A) and B[:, :3].equal(2 * layers[name].B) and layers[name].B.any()
                assert not A[3:].any() and not B[:, 3:].any()
            else:
                assert name.endswith(("k_proj", "gate_proj")) and not A.any() and not B.any()
        assert served.said == [
            "sampler weights: 25 frozen tensors are vLLM's own, 10 adapters go through its LoRA path"
        ]
        assert served.sampler.shares_weights


def test_a_scale_that_rounds_is_not_called_exact(serve):
    with serve("qwen3", alpha=10.0) as served:
        assert not served.sampler.shares_weights
        served.sampler.prove_fresh(0)


def test_staleness_of_every_kind_is_seen(serve, monkeypatch):
    with serve("llama") as served:
        model, sampler = served.model, served.sampler
        sampler.prove_fresh(0)
        with pytest.raises(StaleWeightsError, match="version 0, the trainer is at 1: an update was not published"):
            sampler.prove_fresh(1)
        layer = adapters(model)["model.layers.1.mlp.down_proj"]
        with torch.no_grad():
            layer.B[0, 0] += 1
        with pytest.raises(
            StaleWeightsError, match=r"adapters of 1 layers .* first model.layers.1.mlp.down_proj: other"
        ):
            sampler.prove_fresh(0)
        sampler.publish(0)
        sampler.prove_fresh(0)
        sampler.engine.adapter_slots()["model.layers.0.self_attn.k_proj"][0][0, 0] = 1
        with pytest.raises(StaleWeightsError, match="k_proj: has an adapter in vLLM alone"):
            sampler.prove_fresh(0)
        sampler.publish(0)
        weight = base_parameters(model)["model.layers.0.mlp.up_proj.weight"]
        alias = weight.data
        weight.data = alias.clone()
        with pytest.raises(StaleWeightsError, match=r"1 of 29 .* first model.layers.0.mlp.up_proj.weight"):
            sampler.prove_fresh(0)
        weight.data = alias
        sampler.engine.apply_model(lambda module: module.lora_manager.remove_all_adapters())
        with pytest.raises(StaleWeightsError, match="vLLM has no adapter there"):
            sampler.prove_fresh(0)


def test_what_vllm_cannot_take_is_refused(serve, family_folder):
    with pytest.raises(ValueError, match=r"sampler.weights = 'copy'.*always aliased"), serve("qwen3", mode="copy"):
        pass
    with pytest.raises(ValueError, match="GPT2LMHeadModel does not support LoRA"), serve("gpt2", targets=("c_fc",)):
        pass
    refusal = r"cannot serve these adapters: model.layers.0.self_attn.o_proj: vLLM has no .*'embedded' does"
    with pytest.raises(ValueError, match=refusal), serve("qwen3", engine_targets=("q_proj",)):
        pass
    with pytest.raises(ValueError, match="lora_rank = 513: vLLM serves ranks up to 512"):
        Engine(EngineSettings(str(family_folder("qwen3")), torch.float32, 640, 16, 16 << 20, lora_rank=513))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A random countdown model whose head size vLLM's CPU attention has."""
    folder = tmp_path_factory.mktemp("countdown")
    config = ScratchConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(folder: Path, model: Path, kind: str = "vllm") -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(model), lora_rank=4),
        task=TaskConfig(num_train=20, num_validation=3, num_workers=1),
        sampler=SamplerConfig(kind=kind, max_new_tokens=12, batch_size=32),
        algorithm=AlgorithmConfig(objective="reinforce", updates_per_batch=2, kl_coef=0.01),
        batch=BatchConfig(prompts_per_step=4, rollouts_per_prompt=4, micro_batch_tokens=600),
        optimizer=OptimizerConfig(lr=1e-2),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder=str(folder), num_steps=3, checkpoint_every=2, scored_rollouts=16, sinks=()),
    )


def test_a_run_samples_from_its_adapters_resumes_and_is_evaluated(model_folder, tmp_path):
    config = config_of(tmp_path / "run", model_folder)
    folder = train(config)
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    newest = folder / "checkpoints/step-000003"
    saved = load_file(newest / "adapter_model.safetensors")
    for row in rows:
        assert row["publish/bytes"] == sum(t.nbytes for t in saved.values())
        assert row["mismatch/max_abs"] < 1e-4 and row["grad_norm"] > 0
    newest.rename(tmp_path / "first")
    train(config, resume=True)
    again = load_file(newest / "adapter_model.safetensors")
    assert all(again[name].equal(value) for name, value in saved.items())
    task = ["--task.num-test", "3", "--task.num-workers", "1", "--evaluation.num-samples", "2"]
    task += ["--sampler.kind", "vllm", "--sampler.max-new-tokens", "12"]
    main(["eval", "--model.path", str(newest), *task, "--output", str(tmp_path / "eval.json")])
    assert (tmp_path / "eval.json").exists()


def publish_nothing(self: AdapterWeights, version: int) -> int:
    return 0


def publish_stamp_only(self: AdapterWeights, version: int) -> int:
    return self.base.publish(version)


PUBLISH = AdapterWeights.publish


def once(stale):
    """The first adapter is published, so that the run begins; no later one."""

    def publish(self: AdapterWeights, version: int) -> int:
        return PUBLISH(self, version) if version == 0 else stale(self, version)

    return publish


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ({"publish": once(publish_nothing)}, "an update was not published"),
        ({"publish": once(publish_stamp_only)}, "did not take over those of the last update"),
        (
            {"publish": once(publish_stamp_only), "prove_fresh": lambda self, version: None},
            "the sampler does not run the current weights",
        ),
    ],
    ids=["not published", "not handed over", "not handed over, seen by the probe"],
)
def test_a_stale_adapter_stops_the_run(model_folder, tmp_path, monkeypatch, patches, message):
    for name, value in patches.items():
        monkeypatch.setattr(AdapterWeights, name, value)
    config = config_of(tmp_path / "run", model_folder)
    with pytest.raises(StaleWeightsError, match=message):
        train(dataclasses.replace(config, optimizer=OptimizerConfig(lr=3e-2)))
    assert (tmp_path / "run/checkpoints/step-000001/adapter_model.safetensors").exists()
