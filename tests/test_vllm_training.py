"""Whole runs that sample through vLLM: alias against copy, resume, staleness of every kind, an engine that dies."""

import dataclasses
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import assert_rescored_by
from transformers import AutoModelForCausalLM

from fastrl.cli import main
from fastrl.config.algorithm import ImportanceConfig
from fastrl.config.files import to_toml
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
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records import checkpoints
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train
from fastrl.sampling.protocol import SamplerError, StaleWeightsError
from fastrl.sampling.vllm_engine import Engine
from fastrl.sampling.weights.shared import AliasedWeights, CopiedWeights

pytestmark = pytest.mark.vllm
NUM_STEPS = 3


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A random countdown model whose head size vLLM's CPU attention has."""
    folder = tmp_path_factory.mktemp("countdown")
    config = ScratchConfig(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=96)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(folder: Path, model: Path, mode: str = "alias") -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(model)),
        task=TaskConfig(num_train=20, num_validation=3, num_workers=1),
        sampler=SamplerConfig(kind="vllm", weights=mode, max_new_tokens=12, batch_size=32),
        algorithm=AlgorithmConfig(objective="reinforce", updates_per_batch=2),
        batch=BatchConfig(prompts_per_step=4, rollouts_per_prompt=4, micro_batch_tokens=600),
        optimizer=OptimizerConfig(lr=3e-3),
        evaluation=EvaluationConfig(every=2, split="validation", num_samples=2, at_end=False),
        run=RunConfig(
            **{"folder": str(folder), "num_steps": NUM_STEPS, "checkpoint_every": 2, "sinks": ()},
            **{"scored_rollouts": 16, "rescored_every": 3},
        ),
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"step-{NUM_STEPS:06d}"
    (trainer,) = (path / "trainer").iterdir()
    return load_file(path / "model.safetensors") | load_file(trainer)


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def tokens(folder: Path, step: int) -> list[list[int]]:
    return [r["completion_ids"] for r in read_jsonl(folder / "rollouts" / f"step-{step:06d}.jsonl.gz")]


@pytest.fixture(scope="module")
def aliased(tmp_path_factory, model_folder) -> Path:
    return train(config_of(tmp_path_factory.mktemp("runs") / "alias", model_folder))


def test_alias_and_copy_make_the_same_run(aliased, model_folder, tmp_path):
    copied = train(config_of(tmp_path / "copy", model_folder, "copy"))
    for step in (1, 2, 3):
        assert tokens(aliased, step) == tokens(copied, step)
    assert tokens(aliased, 1) != tokens(aliased, 2)
    assert_equal_weights(aliased, copied)
    num_bytes = sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(model_folder).parameters())
    steps = [[row for row in read_jsonl(f / "metrics.jsonl") if "publish/bytes" in row] for f in (aliased, copied)]
    assert len(steps[0]) == len(steps[1]) == NUM_STEPS
    for a, c in zip(*steps, strict=True):
        assert (a["publish/bytes"], c["publish/bytes"]) == (0, num_bytes)
        assert a["mismatch/max_abs"] < 1e-4 and abs(a["mismatch/ratio"] - 1) < 1e-5 and 0 <= a["mismatch/k3"] < 1e-8
        assert a["grad_norm"] == c["grad_norm"] > 0
    alias_s, copy_s = (statistics.median(row["time/publish_s"] for row in rows) for rows in steps)
    assert alias_s < 1e-3 and alias_s < copy_s


def test_log_probs_after_the_update_are_those_that_vllm_serves_next(aliased):
    """Scored between the update and the next draw, from the tensors that both share."""
    rows = read_jsonl(aliased / "rollouts" / f"step-{NUM_STEPS:06d}.jsonl.gz")
    assert len(rows) == 16
    assert_rescored_by(aliased / "checkpoints" / f"step-{NUM_STEPS:06d}", rows)


def test_compiled_blocks_train_the_weights_that_vllm_serves(aliased, model_folder, tmp_path):
    """The blocks are compiled before their weights move into the engine's memory."""
    config = config_of(tmp_path / "run", model_folder)
    model, run = dataclasses.replace(config.model, compile=True), dataclasses.replace(config.run, num_steps=2)
    config = dataclasses.replace(config, model=model, run=run)
    ours, plain = (read_jsonl(folder / "metrics.jsonl") for folder in (train(config), aliased))
    assert tokens(tmp_path / "run", 1) == tokens(aliased, 1)
    ours, plain = ([row for row in rows if "publish/bytes" in row] for rows in (ours, plain))
    assert len(ours) == 2
    for row in ours:
        assert row["publish/bytes"] == 0 and row["mismatch/max_abs"] < 1e-4
    assert ours[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)
    assert ours[0]["grad_norm"] != plain[0]["grad_norm"]


def test_checkpoints_of_shared_weights_are_whole_and_resume_bitwise(aliased, model_folder, tmp_path):
    stored = load_file(aliased / "checkpoints" / "step-000003" / "model.safetensors")
    original = load_file(model_folder / "model.safetensors")
    assert {k: v.shape for k, v in stored.items()} == {k: v.shape for k, v in original.items()}
    config = config_of(tmp_path / "run", model_folder)
    train(config)
    newest = tmp_path / "run" / "checkpoints" / "step-000003" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    train(config, resume=True)
    assert_equal_weights(aliased, tmp_path / "run")
    assert tokens(aliased, 3) == tokens(tmp_path / "run", 3)


@pytest.mark.slow  # it compiles its step
def test_eight_bit_moments_update_the_weights_that_vllm_serves(model_folder, tmp_path):
    """Every step of the run proves that the parameters still are vLLM's tensors."""
    config = config_of(tmp_path / "run", model_folder)
    optimizer = OptimizerConfig(kind="adamw-8bit", grad_dtype="bfloat16", lr=3e-3)
    folder = train(
        dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"), optimizer=optimizer)
    )
    steps = [row for row in read_jsonl(folder / "metrics.jsonl") if "publish/bytes" in row]
    assert [row["publish/bytes"] for row in steps] == [0] * NUM_STEPS
    assert all(row["mismatch/max_abs"] < 0.1 and row["grad_norm"] > 0 for row in steps)
    stored = weights(folder)
    start = load_file(model_folder / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].bfloat16()
    assert (stored["model.layers.0.self_attn.q_proj.weight"] != start).float().mean() > 0.5
    assert any(name.startswith("exp_avg_codes.") for name in stored)


def repoint(optimizer: MasterOptimizer) -> None:
    """What a careless `.to()` or reload would do: the trainer's tensors move away from vLLM's."""
    for parameter in optimizer.weights.values():
        parameter.data = parameter.data.clone()


STEP = MasterOptimizer.step


def step_and_repoint(self: MasterOptimizer) -> tuple[float, bool]:
    result = STEP(self)
    repoint(self)
    return result


def publish_nothing(self: CopiedWeights, version: int) -> int:
    return 0


def publish_stamp_only(self: CopiedWeights, version: int) -> int:
    self.version = version
    return 0


@pytest.mark.parametrize(
    ("mode", "patches", "message"),
    [
        ("alias", [(MasterOptimizer, "step", step_and_repoint)], "no longer share memory with vLLM's"),
        (
            "alias",
            [(MasterOptimizer, "step", step_and_repoint), (AliasedWeights, "prove_fresh", lambda self, version: None)],
            "the sampler does not run the current weights",
        ),
        ("copy", [(CopiedWeights, "publish", publish_nothing)], "an update was not published"),
        ("copy", [(CopiedWeights, "publish", publish_stamp_only)], "load_weights skipped or changed them"),
        (
            "copy",
            [
                (CopiedWeights, "publish", publish_stamp_only),
                (CopiedWeights, "prove_fresh", lambda self, version: None),
            ],
            "the sampler does not run the current weights",
        ),
    ],
    ids=["re-pointed", "re-pointed, seen by the probe", "not published", "not copied", "not copied, seen by the probe"],
)
def test_stale_weights_stop_the_run(model_folder, tmp_path, monkeypatch, mode, patches, message):
    for owner, name, value in patches:
        monkeypatch.setattr(owner, name, value)
    config = config_of(tmp_path / "run", model_folder, mode)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(at_end=False))
    with pytest.raises(StaleWeightsError, match=message):
        train(config)
    newest = checkpoints.latest_sound(tmp_path / "run" / "checkpoints", print)
    assert newest is not None and AutoModelForCausalLM.from_pretrained(newest) is not None
    assert newest.name == "step-000001"


@pytest.mark.parametrize("is_seen_by_the_probe", [False, True])
def test_a_stale_prefix_cache_stops_the_run(model_folder, tmp_path, monkeypatch, is_seen_by_the_probe):
    """Prompts longer than two KV blocks that come again every step, and a reset that only says it happened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long_prompts.py").write_text(
        "def reward(prompt, completion, **row):\n    return len(completion) % 2\n"
    )
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{(str(i) + "+") * 140}"}}\n' for i in range(1, 5)))
    config = config_of(tmp_path / "run", model_folder)
    config = dataclasses.replace(
        config,
        task=TaskConfig(name="long_prompts:reward", train="rows.jsonl", num_workers=1),
        evaluation=EvaluationConfig(at_end=False),
    )
    cached: list[int] = []
    stream = Engine.stream

    def spy(self, *args):
        completions = list(stream(self, *args))
        cached.append(min(c.num_cached_tokens for _, c in completions))
        return iter(completions)

    monkeypatch.setattr(Engine, "stream", spy)
    monkeypatch.setattr(Engine, "reset_prefix_cache", lambda self: True)
    if is_seen_by_the_probe:
        monkeypatch.setattr("fastrl.sampling.vllm_sampler.check_cache_reads", lambda prompts, cached: None)
    message = "does not run the current weights" if is_seen_by_the_probe else "prefix cache, but shares only 0"
    with pytest.raises(StaleWeightsError, match=message):
        train(config)
    assert cached == [0, 256]


def test_an_engine_that_dies_leaves_a_checkpoint_and_the_run_resumes(
    aliased, model_folder, tmp_path, monkeypatch, capsys
):
    config = config_of(tmp_path / "run", model_folder)
    (tmp_path / "config.toml").write_text(to_toml(config))
    stream, calls = Engine.stream, []

    def die(self, *args):
        calls.append(1)
        if len(calls) == 2:
            core = self._llm.llm_engine.engine_core
            monkeypatch.setattr(core, "get_output", lambda: (_ for _ in ()).throw(RuntimeError("device lost")))
        return stream(self, *args)

    monkeypatch.setattr(Engine, "stream", die)
    assert main(["train", str(tmp_path / "config.toml")]) == 1
    assert "error: vLLM failed to generate: RuntimeError: device lost" in capsys.readouterr().err
    assert checkpoints.latest_sound(tmp_path / "run" / "checkpoints", print).name == "step-000001"
    monkeypatch.setattr(Engine, "stream", stream)
    train(config, resume=True)
    assert_equal_weights(aliased, tmp_path / "run")


def test_what_vllm_cannot_serve_is_one_message_before_training(model_folder, tmp_path, capsys):
    config = config_of(tmp_path / "run", model_folder)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "config.toml"), "--sampler.kv-cache-bytes", "100"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: vLLM cannot serve") and "sampler.kv_cache_bytes = 100" in error
    assert main(["train", str(tmp_path / "config.toml"), "--run.scored-rollouts", "0"]) == 2
    assert "freshness probe" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_embedded_run_with_importance_weights_says_so(model_folder, tmp_path, capsys):
    config = config_of(tmp_path / "run", model_folder)
    config = dataclasses.replace(
        config, algorithm=dataclasses.replace(config.algorithm, importance=ImportanceConfig("token"))
    )
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, num_steps=1))
    train(config)
    assert "importance weights: token (asked for by algorithm.importance.kind)" in capsys.readouterr().out


def test_sampler_errors_are_errors_of_the_sampler():
    assert issubclass(StaleWeightsError, SamplerError)
