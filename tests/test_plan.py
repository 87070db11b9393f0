"""`fastrl plan`: parts that can be counted by hand, a budget that really fits, paths, and no weight read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.config import AlgorithmConfig, BatchConfig, ModelConfig, SamplerConfig, TrainConfig
from fastrl.plan import GIB, make_plan

BATCH = BatchConfig(prompts_per_step=4, rollouts_per_prompt=4, micro_batch_tokens=512)


@pytest.fixture
def config(countdown_folder, tmp_path) -> TrainConfig:
    """A folder with the config and the tokenizer only: there are no weights to load."""
    for path in countdown_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return TrainConfig(model=ModelConfig(str(tmp_path)), batch=BATCH, sampler=SamplerConfig(max_new_tokens=16))


def test_parts_by_hand(config):
    plan = make_plan(config, device_type="cpu", memory_gib=1.0, prompt_tokens=11)
    architecture = json.loads(Path(config.model.path, "config.json").read_text())
    assert (architecture["hidden_size"], architecture["num_hidden_layers"], architecture["head_dim"]) == (32, 2, 16)
    block = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 16
    count = architecture["vocab_size"] * 32 + 2 * block + 32
    assert plan.training.weights == plan.training.gradients == 4 * count and plan.training.optimizer == 8 * count
    assert plan.sequence_tokens == 27
    assert plan.kv_cache == 512 * 27 * 2 * 2 * 2 * 16 * 4  # sequences, tokens, layers, K and V, heads, size, fp32
    assert plan.checkpoint == plan.resident == 12 * count
    assert plan.reference == 0 and plan.peak <= plan.memory == GIB
    with_reference = replace(config, algorithm=AlgorithmConfig(kl_coef=0.1))
    assert make_plan(with_reference, device_type="cpu", memory_gib=1.0, prompt_tokens=11).reference == 4 * count


def test_the_largest_budget_fits_and_a_larger_one_does_not(config):
    memory = 0.25
    best = make_plan(config, device_type="cpu", memory_gib=memory, prompt_tokens=11).fitting_tokens
    assert best > 512

    def peak(tokens: int) -> int:
        changed = replace(config, batch=replace(BATCH, micro_batch_tokens=tokens))
        return make_plan(changed, device_type="cpu", memory_gib=memory, prompt_tokens=11).training.peak

    assert peak(int(0.97 * best)) <= memory * GIB < peak(int(1.03 * best))


def test_recomputing_lowers_activations_and_raises_the_budget(config):
    plain = make_plan(config, device_type="cpu", memory_gib=0.25, prompt_tokens=11)
    model = replace(config.model, gradient_checkpointing=True)
    ours = make_plan(replace(config, model=model), device_type="cpu", memory_gib=0.25, prompt_tokens=11)
    assert ours.training.activations < 0.4 * plain.training.activations
    assert ours.fitting_tokens > plain.fitting_tokens


def test_a_gpu_can_be_planned_without_one(config):
    plan = make_plan(config, device_type="cuda", memory_gib=80, prompt_tokens=11)
    assert plan.training.masters == 2 * plan.training.weights  # bfloat16 weights, float32 masters
    assert plan.checkpoint == 7 * plan.training.weights and plan.resident == plan.kv_cache * plan.keeps_kv_cache
    assert "packed" in plan.paths["attention"] and plan.paths["device"] == "cuda, weights in bfloat16"
    tight = make_plan(config, device_type="cuda", memory_gib=0.0001, prompt_tokens=11)
    assert tight.fitting_tokens == 0 and tight.peak > tight.memory


def test_the_command_prints_parts_paths_and_verdict(config, capsys):
    arguments = [
        "--model.path",
        config.model.path,
        "--sampler.max-new-tokens",
        "16",
        "--batch.micro-batch-tokens",
        "64",
    ]
    assert main(["plan", *arguments, "--memory-gib", "2"]) == 0
    out = capsys.readouterr().out
    assert "of 2.000 GiB: fits" in out and "attention: sdpa, packed" in out and "kernel: native" in out
    assert main(["plan", *arguments, "--memory-gib", "0.001"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main(["plan", *arguments, "--prompt-tokens", "60"]) == 2
    assert "make 76 tokens, more than batch.micro_batch_tokens=64" in capsys.readouterr().err
