"""LoRA: the base stays as it was bit for bit, updates are those of plain PyTorch, checkpoints are peft's."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from rollout_cases import Rollout, batch_of, scores_of
from safetensors.torch import load_file
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

import fastrl.run.training
from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.policy import roles
from fastrl.policy.loading import load_for_training, load_model
from fastrl.policy.lora import adapters, adapters_off, attach, base_parameters
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.recompute import recompute_blocks
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train

NUM_STEPS = 3
LORA = ModelConfig(lora_rank=4, lora_alpha=6.0)  # α/r = 1.5


def config_of(folder: Path, model: Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(model), lora_rank=4),
        task=TaskConfig(num_train=20, num_validation=3, num_test=3, num_workers=1),
        sampler=SamplerConfig(kind="embedded", max_new_tokens=12),
        algorithm=AlgorithmConfig(objective="reinforce", updates_per_batch=2, kl_coef=0.1),
        batch=BatchConfig(prompts_per_step=3, rollouts_per_prompt=4, micro_batch_tokens=200),
        optimizer=OptimizerConfig(lr=1e-2),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder=str(folder), num_steps=NUM_STEPS, checkpoint_every=2, scored_rollouts=5, sinks=()),
    )


def rollouts_of(num: int = 4) -> list[Rollout]:
    completions = [[2 + i, 11, 3 * i + 4, 5][: 2 + i % 3] for i in range(num)]
    return [Rollout([9, 8 + i, 7], c, (-1.0) ** i, group=i) for i, c in enumerate(completions)]


def adapted(model: PreTrainedModel, config: ModelConfig = LORA) -> PreTrainedModel:
    """The model with adapters whose B is not zero either."""
    attach(model, config, None, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.B.add_(torch.randn(adapter.B.shape, generator=generator).to(adapter.B), alpha=0.1)
    return model


def stored(folder: Path, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"step-{step:06d}"
    (trainer,) = (path / "trainer").iterdir()
    return load_file(path / "adapter_model.safetensors") | load_file(trainer)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, countdown_folder) -> Path:
    """A run of three steps through the command line."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "config.toml").write_text(to_toml(config_of(folder / "run", countdown_folder)))
    assert main(["train", str(folder / "config.toml")]) in (0, None)
    return folder / "run"


def test_a_run_moves_the_adapters_and_saves_them_in_pefts_format(finished, countdown_folder):
    rows = read_jsonl(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 and row["mismatch/max_abs"] < 1e-4 for row in rows)
    assert rows[0]["kl/reference_k3"] < rows[2]["kl/reference_k3"]
    checkpoint = finished / "checkpoints" / "step-000003"
    assert not list(checkpoint.glob("model*")) and not (checkpoint / "config.json").exists()
    saved = json.loads((checkpoint / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (4, 32.0, 0.0)
    assert saved["base_model_name_or_path"] == str(countdown_folder)
    before, after = (load_file(finished / f"checkpoints/step-{n:06d}/adapter_model.safetensors") for n in (2, 3))
    assert len(after) == 2 * 2 * 7  # A and B, two blocks, seven linear layers
    assert all(value.any() and not value.equal(before[name]) for name, value in after.items())
    assert not [name for name in stored(finished) if "lora_" not in name and not name.startswith("rng.")]


def test_the_base_is_bitwise_what_it_was(countdown_folder, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(
        fastrl.run.training.Run, "__exit__", lambda self, *error: (runs.append(self), self.stack.close())
    )
    train(config_of(tmp_path / "run", countdown_folder))
    model = runs[0].parts.policy.model
    original = AutoModelForCausalLM.from_pretrained(countdown_folder)
    base = base_parameters(model)
    assert base.keys() == dict(original.named_parameters()).keys()
    assert all(
        base[name].equal(parameter) and base[name].grad is None for name, parameter in original.named_parameters()
    )
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())
    assert all(adapter.B.any() for adapter in adapters(model).values())


def test_a_checkpoint_loads_in_peft_with_the_same_log_probs(finished, countdown_folder):
    checkpoint = finished / "checkpoints" / "step-000003"
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(countdown_folder), checkpoint).eval()
    ours = load_model(Pretrained(ModelConfig(path=str(checkpoint))))
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        expected, base = theirs(ids).logits, AutoModelForCausalLM.from_pretrained(countdown_folder)(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, atol=1e-6, rtol=1e-6)
    assert (expected - base).abs().max() > 1e-3
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_compiled_blocks_make_the_same_run_within_rounding_and_resume_bitwise(finished, countdown_folder, tmp_path):
    """The reference is the base, whose compiled blocks run with the adapters off."""
    config = config_of(tmp_path / "whole", countdown_folder)
    config = replace(config, model=replace(config.model, compile=True))
    train(config)
    for plain, ours in zip(*(read_jsonl(f / "metrics.jsonl") for f in (finished, tmp_path / "whole")), strict=True):
        assert ours["reward/mean"] == plain["reward/mean"]
        assert ours["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
        assert ours["grad_norm"] != plain["grad_norm"]
    parts = replace(config, run=replace(config.run, folder=str(tmp_path / "parts"), num_steps=2))
    train(parts)
    train(replace(parts, run=replace(parts.run, num_steps=NUM_STEPS)), resume=True)
    first, second = stored(tmp_path / "whole"), stored(tmp_path / "parts")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_resume_continues_bitwise(finished, countdown_folder, tmp_path):
    config = config_of(tmp_path / "run", countdown_folder)
    train(config)
    newest = tmp_path / "run/checkpoints/step-000003/adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(config, resume=True)
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.dropped.jsonl")] == [3]
    first, second = stored(finished), stored(tmp_path / "run")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_new_adapters_depend_on_the_seed_alone_and_add_nothing(countdown_folder):
    models = [load_model(Pretrained(ModelConfig(path=str(countdown_folder)))) for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        attach(model, LORA, None, seed=seed)
    assert torch.get_rng_state().equal(state)
    first, same, other = ({n: a.A for n, a in adapters(model).items()} for model in models)
    assert all(first[n].equal(same[n]) and not first[n].equal(other[n]) for n in first)
    assert not any(a.B.any() for a in adapters(models[0]).values())
    rollouts = rollouts_of()
    assert scores_of(Policy(models[0]), rollouts, 100) == scores_of(
        Policy(load_model(Pretrained(ModelConfig(path=str(countdown_folder))))), rollouts, 100
    )


def plain_step(
    model: PreTrainedModel, base: dict, layers: dict, rollouts: list[Rollout], lr: float, eps: float
) -> dict:
    """One AdamW step on −Σ A·logp/4 through merged weights W + 1.5·B·A, in plain PyTorch; A and B by layer."""
    leaves = {name: [t.detach().clone().requires_grad_() for t in pair] for name, pair in layers.items()}
    merged = base | {f"{name}.weight": base[f"{name}.weight"] + 1.5 * B @ A for name, (A, B) in leaves.items()}
    loss = 0.0
    for r in rollouts:
        ids = torch.tensor([r.ids])
        logits = functional_call(model, merged, (ids,)).logits[0, len(r.prompt_ids) - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(r.completion_ids)[:, None])
        loss = loss - r.advantage * chosen.sum() / 4
    tensors = [t for pair in leaves.values() for t in pair]
    gradients = iter(torch.autograd.grad(loss, tensors))
    return {
        name: [t - lr * g / (g.abs() + eps) for t, g in zip(pair, gradients, strict=False)]
        for name, pair in leaves.items()
    }


def test_an_update_is_the_hand_made_one(tiny_model, countdown_folder):
    lr, eps = 1e-2, 1e-3
    base = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    plain = type(tiny_model)(tiny_model.config).eval()
    model, rollouts = adapted(tiny_model), rollouts_of()
    before = {name: [a.A.detach().clone(), a.B.detach().clone()] for name, a in adapters(model).items()}
    expected = plain_step(plain, base, before, rollouts, lr, eps)
    policy = Policy(model)
    optimizer = MasterOptimizer(policy, OptimizerConfig(lr=lr, eps=eps, max_grad_norm=0.0), 1)
    for part in (rollouts[:1], rollouts[1:]):
        policy(policy.micro_batch(batch_of(part), np.full(len(part), 0.25))).loss.backward()
    assert optimizer.step()[1]
    for name, adapter in adapters(model).items():
        for ours, theirs, old in zip((adapter.A, adapter.B), expected[name], before[name], strict=True):
            assert (theirs - old).abs().max() > 1e-4
            torch.testing.assert_close(ours.detach(), theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_switched_off_the_policy_is_a_separately_loaded_base(countdown_folder, dtype):
    source = ModelConfig(path=str(countdown_folder), dtype=dtype)
    policy, reference = Policy(adapted(load_model(Pretrained(source)))), Policy(load_model(Pretrained(source)))
    optimizer = MasterOptimizer(policy, OptimizerConfig(), 1)
    rollouts = rollouts_of()
    expected = scores_of(reference, rollouts, 100)
    moved = scores_of(policy, rollouts, 100)
    with adapters_off(policy.model):
        assert scores_of(policy, rollouts, 100) == expected
        assert all(p.requires_grad for p in optimizer.weights.values())
    assert scores_of(policy, rollouts, 100) == moved != expected
    policy(policy.micro_batch(batch_of(rollouts), np.ones(len(rollouts)))).loss.backward()
    assert {p.grad.dtype for p in optimizer.weights.values()} == {torch.float32}
    assert len(optimizer.weights) == 2 * len(adapters(policy.model)) == 28
    with adapters_off(reference.model):
        assert scores_of(reference, rollouts, 100) == expected


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen3-moe"])
def test_other_architectures_train_save_and_load(family_folder, tmp_path, family):
    """Sliding windows, transposed linear layers, and experts that are one tensor with adapters of their own."""
    source = ModelConfig(path=str(family_folder(family)))
    policy, reference, rollouts = (
        Policy(adapted(load_model(Pretrained(source)))),
        Policy(load_model(Pretrained(source))),
        rollouts_of(),
    )
    optimizer = MasterOptimizer(policy, OptimizerConfig(lr=1e-2), 1)
    before = {name: weight.detach().clone() for name, weight in optimizer.weights.items()}
    policy(policy.micro_batch(batch_of(rollouts), np.full(len(rollouts), 0.25))).loss.backward()
    assert optimizer.step()[1]
    assert before and not [name for name, weight in optimizer.weights.items() if weight.equal(before[name])]
    original, base = dict(reference.model.named_parameters()), base_parameters(policy.model)
    assert base.keys() == original.keys() and all(base[name].equal(original[name]) for name in original)
    with adapters_off(policy.model):
        assert scores_of(policy, rollouts, 100) == scores_of(reference, rollouts, 100)
    policy.model.save_pretrained(tmp_path)
    loaded = Policy(load_model(Pretrained(ModelConfig(path=str(tmp_path)))))
    assert scores_of(loaded, rollouts, 100) == scores_of(policy, rollouts, 100) != scores_of(reference, rollouts, 100)


def test_a_kl_penalty_loads_no_second_model(countdown_folder, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(roles, "load_for_training", lambda *a: loaded.append(a) or load_for_training(*a))
    config = config_of(tmp_path / "run", countdown_folder)
    train(replace(config, run=replace(config.run, num_steps=1)))
    assert len(loaded) == 1
    full = replace(
        config,
        model=replace(config.model, lora_rank=0),
        run=replace(config.run, num_steps=1, folder=str(tmp_path / "full")),
    )
    train(full)
    assert len(loaded) == 3


def test_recomputed_blocks_give_the_same_gradients(tiny_model):
    policy = Policy(adapted(tiny_model))
    batch = policy.micro_batch(batch_of(rollouts_of()), np.full(4, 0.25))
    trained = [p for p in policy.parameters() if p.requires_grad]
    kept = torch.autograd.grad(policy(batch).loss, trained)
    assert recompute_blocks(policy.model) == 2
    for a, b in zip(torch.autograd.grad(policy(batch).loss, trained), kept, strict=True):
        assert a.any() and a.equal(b)


def test_targets_choose_the_layers(tiny_model):
    attach(tiny_model, replace(LORA, lora_targets=("q_proj", "1.mlp.down_proj")), None, seed=0)
    assert list(adapters(tiny_model)) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]


def test_an_adapter_checkpoint_is_evaluated(finished, tmp_path, capsys):
    checkpoint = finished / "checkpoints" / "step-000003"
    arguments = ["--task.num-test", "3", "--task.num-workers", "1", "--evaluation.num-samples", "2"]
    arguments += ["--sampler.max-new-tokens", "12", "--sampler.kind", "embedded"]
    main(["eval", "--model.path", str(checkpoint), *arguments, "--output", str(tmp_path / "eval.json")])
    assert json.loads((tmp_path / "eval.json").read_text())["num_problems"] == 3
    capsys.readouterr()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    saved = json.loads((checkpoint / "adapter_config.json").read_text())
    (elsewhere / "adapter_config.json").write_text(json.dumps(saved | {"base_model_name_or_path": "/gone/base"}))
    assert main(["eval", "--model.path", str(elsewhere), "--output", str(tmp_path / "b.json")]) == 2
    assert "holds adapters of the model '/gone/base', which is not there" in capsys.readouterr().err


def test_adapters_that_are_more_than_lora_are_refused(countdown_folder, tmp_path):
    for name, settings in {"dora": {"use_dora": True}, "embedding": {"target_modules": ["embed_tokens"]}}.items():
        model = AutoModelForCausalLM.from_pretrained(countdown_folder)
        model.add_adapter(peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings))
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="more than LoRA's A and B on linear layers"):
            load_model(Pretrained(ModelConfig(path=str(tmp_path / name))))


def error_of(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_message_before_a_model_is_loaded(finished, countdown_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roles, "load_for_training", None)
    run = ["train", "--run.folder", str(tmp_path / "run"), "--model.path"]
    model = [*run, str(countdown_folder)]
    rank = [*model, "--model.lora-rank", "4"]
    assert "model.lora_rank must be at least 0, got -1" in error_of(capsys, *model, "--model.lora-rank", "-1")
    assert "model.lora_alpha must be above 0, got 0.0" in error_of(capsys, *rank, "--model.lora-alpha", "0")
    error = error_of(capsys, *rank, "--model.lora-targets", "q_proj", "w_proj")
    assert "'w_proj' is no linear layer of Qwen3ForCausalLM; it may be ['down_proj', 'gate_proj', 'k_proj'" in error
    assert "adapters are not sharded so far" in error_of(capsys, *rank, "--optimizer.offload", "True")
    assert "'lm_head' is the head" in error_of(capsys, *rank, "--model.lora-targets", "lm_head")
    checkpoint = str(finished / "checkpoints" / "step-000003")
    assert "holds adapters, no whole model" in error_of(capsys, *run, checkpoint)
    assert "a warm start trains all parameters" in error_of(capsys, "warmup", "--model.lora-rank", "4")
    assert "takes adapters from model.path" in error_of(capsys, "eval", *model[3:], "--model.lora-rank", "4")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find_spec(name, *a))
    assert "model.lora_rank = 4, but peft is not installed: pip install '.[lora]' in fastrl's clone" in error_of(
        capsys, *rank
    )
    assert not (tmp_path / "run").exists()
