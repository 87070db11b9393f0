"""`fastrl plan` predicts for the batches that the run will make, and what an H100 measured."""

import random
from dataclasses import replace

import pytest
from gpu_train import SHAPES
from rollout_cases import Rollout, batch_of
from torch.nn.attention import varlen

import fastrl.plan.footprint as footprint
from fastrl.cli import main
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    SamplerConfig,
    TrainConfig,
)
from fastrl.plan.plan import GIB, make_plan, plan_text
from fastrl.plan.workload import workload
from fastrl.policy.attention import AttentionChoice
from fastrl.policy.micro_batch import computed_tokens
from fastrl.policy.packing import cut_micro_batches
from fastrl.policy.pretrained import Pretrained

CPU = {"device_type": "cpu", "memory_gib": 4.0, "prompt_tokens": 11}
COPIES = 4  # of a step's prompts and rollouts


@pytest.fixture
def config(countdown_folder) -> TrainConfig:
    batch = BatchConfig(prompts_per_step=COPIES, rollouts_per_prompt=COPIES, micro_batch_tokens=1 << 14)
    return TrainConfig(ModelConfig(str(countdown_folder)), batch=batch, sampler=SamplerConfig(max_new_tokens=16))


def of_algorithm(config: TrainConfig, **settings: object) -> TrainConfig:
    return replace(config, algorithm=AlgorithmConfig(**settings))


def test_a_micro_batch_is_no_larger_than_an_update(config):
    """Four prompts of 11 tokens lie on the row once, beside sixteen completions of 16."""
    plan = make_plan(config, **CPU)
    assert plan.work.update_tokens == plan.work.micro_batch_tokens == 4 * 11 + 16 * 16
    assert "while training, 300 tokens" in plan_text(plan)
    assert "every batch.micro_batch_tokens fits, one update has at most 300 tokens" in plan_text(plan)
    exact = make_plan(replace(config, batch=replace(config.batch, micro_batch_tokens=300)), **CPU)
    assert plan.training == exact.training and plan.peak == exact.peak
    small = make_plan(replace(config, batch=replace(config.batch, micro_batch_tokens=64)), **CPU)
    assert small.work.micro_batch_tokens == 64 and small.training.activations < plan.training.activations
    assert make_plan(of_algorithm(config, updates_per_batch=2), **CPU).work.update_tokens == 150
    assert make_plan(config, num_ranks=2, **CPU).work.update_tokens == 150
    thirds = make_plan(of_algorithm(config, updates_per_batch=3), **CPU)
    assert thirds.work.update_tokens == 150  # the first has two groups
    work = workload(config, Pretrained(config.model), "cpu", 11, 1)
    padded = replace(work, attention=AttentionChoice(None, False, "it is padded"))
    assert (work.update_tokens, padded.update_tokens) == (300, 16 * 27)
    after = of_algorithm(config, updates_per_batch=2, minibatch_cut="after-dropping")
    assert make_plan(after, **CPU).work.update_tokens == 8 * 27  # rollouts of any group


@pytest.mark.parametrize("budget", [64, 150, 290, 300, 4000])
def test_no_micro_batch_of_the_run_is_larger(config, budget):
    """Cut as the trainer cuts, whichever rollouts are dropped."""
    generator = random.Random(budget)
    changed = replace(config, batch=replace(config.batch, micro_batch_tokens=budget))
    limit = make_plan(changed, **CPU).work.micro_batch_tokens
    for share in (1.0, 1.0, 0.8, 0.5, 0.2):
        chosen = [
            Rollout([100 * g] * 11, [generator.randrange(50) for _ in range(16)], group=g)
            for g in range(COPIES)
            for _ in range(COPIES)
            if generator.random() <= share
        ]
        rollouts = batch_of(chosen)
        for part in cut_micro_batches(rollouts, budget, is_packed=True):
            assert computed_tokens(rollouts.take(part), is_packed=True) <= limit


def test_the_embedded_sampler_draws_a_step_or_an_evaluation(config):
    whole = make_plan(config, **CPU)
    never = make_plan(replace(config, evaluation=EvaluationConfig(at_end=False)), **CPU)
    assert whole.kv_cache == 512 // 16 * never.kv_cache and whole.sampler_logits == 512 // 16 * never.sampler_logits


def test_the_command_takes_what_train_takes(config, capsys):
    """Booleans with a value, as in a config file, and settings in either spelling."""
    arguments = ["--model.path", config.model.path, "--sampler.max-new-tokens", "16", "--prompt-tokens", "11"]
    booleans = [
        "--evaluation.at-end",
        "False",
        "--model.gradient_checkpointing",
        "True",
        "--optimizer.offload",
        "False",
    ]
    assert main(["plan", *arguments, *booleans, "--memory-gib", "2"]) == 0
    assert "of 2.000 GiB: fits" in capsys.readouterr().out


def varlen_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    return OWN(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


OWN = varlen.varlen_attn


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True], ids=["torch 2.12 and later", "torch 2.11"])
def test_the_peak_that_an_h100_measured(is_old, tmp_path, monkeypatch):
    """43.8 GiB of tensors with torch 2.11 and transformers' own norms (bench/results/h100-2026-11-28).

    Later versions of torch keep fewer keys and values; norms that keep their input save the float32 copies:
    4 bytes · (2 · 1024 + 16 · 128 + 8 · 128) values a layer, and the last norm's.
    """
    if is_old:
        monkeypatch.setattr(varlen, "varlen_attn", varlen_of_2_11)
    shape = SHAPES["qwen3-0.6b"]
    shape.save_pretrained(tmp_path)
    config = TrainConfig(
        ModelConfig(str(tmp_path)),
        batch=BatchConfig(prompts_per_step=8, rollouts_per_prompt=8, micro_batch_tokens=16 * 1024),
        sampler=SamplerConfig(kind="embedded", max_new_tokens=768),
    )
    ours = make_plan(config, device_type="cuda", memory_gib=79.2, prompt_tokens=256)
    monkeypatch.setattr(footprint, "keep_norm_inputs", lambda model: 0)
    plan = make_plan(config, device_type="cuda", memory_gib=79.2, prompt_tokens=256)
    saved = 16 * 1024 * 4 * (28 * (2 * 1024 + 16 * 128 + 8 * 128) + 1024)
    assert plan.training.peak - ours.training.peak == pytest.approx(saved, rel=0.01)
    assert plan.work.micro_batch_tokens == 16 * 1024
    if is_old:
        assert plan.training.peak == pytest.approx(43.8 * GIB, rel=0.02)
    assert 40 * GIB < plan.training.peak <= 43.8 * GIB * 1.01
    assert plan.training.peak + plan.reserve > 42.9 * GIB
