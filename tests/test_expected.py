"""Seconds of a step: by hand from what was counted, near what was measured, and no number where nothing was."""

from dataclasses import replace

import pytest
import torch
from gpu_train import SHAPES, WORKS, flops

from fastrl.cli import main
from fastrl.config.schema import BatchConfig, ModelConfig, RunConfig, SamplerConfig, TrainConfig
from fastrl.plan.cards import card_of, named_card
from fastrl.plan.expected import expected_seconds, expected_text
from fastrl.plan.flops import ModelShape, Sequences, decoding_bytes, scoring_flops, training_flops
from fastrl.plan.footprint import storageless_model
from fastrl.plan.measured import QWEN3_600M, seconds
from fastrl.plan.workload import Workload
from fastrl.policy.attention import AttentionChoice

H100, VARLEN = named_card("H100"), AttentionChoice("varlen", True, "")


def workload_of(**config: object) -> Workload:
    """The iteration that was measured: 32 prompts of 256 tokens, 8 completions of 768."""
    measured = TrainConfig(
        batch=BatchConfig(32, 8, 16384), sampler=SamplerConfig(max_new_tokens=768), run=RunConfig(scored_rollouts=64)
    )
    run = replace(measured, **config)
    return Workload(run, torch.device("cuda"), torch.bfloat16, VARLEN, "vllm", "", 1024, 1)


def test_counted_by_hand():
    """Two prompts of 3 tokens, four completions of 5: 26 tokens, 2 · 9 + 4 · (64 − 9) pairs."""
    shape, sequences = ModelShape(1000, 2, 8, 16, 100, 12, 5000), Sequences(2, 4, 3, 5)
    assert training_flops(shape, sequences) == 6 * (1000 * 26 + 2 * 8 * 238 + 16 * 100 * 20)
    assert scoring_flops(shape, sequences) == 2 * (1000 * 26 + 2 * 8 * 238 + 16 * 100 * 20)
    assert decoding_bytes(shape, sequences, num_rounds=2) == 5 * (2 * 5000 + 4 * 5.5 * 12)
    alone = Sequences(4, 4, 3, 5)
    assert (alone.num_tokens, alone.num_pairs) == (4 * 8, 4 * 64)


def test_the_measured_shape_is_that_of_the_model_and_of_the_benchmark():
    """A block of Qwen3-0.6B: 3·1024·3072 + 2·1024·2048 + 2·1024·1024 + 2·1024 + 2·128 parameters."""
    assert QWEN3_600M.block_parameters == 28 * (
        3 * 1024 * 3072 + 2 * 1024 * 2048 + 2 * 1024 * 1024 + 2 * 1024 + 2 * 128
    )
    with storageless_model(SHAPES["qwen3-0.6b"], torch.bfloat16, VARLEN, ModelConfig()) as model:
        assert ModelShape.of(model) == QWEN3_600M
        num_flops = flops(model, WORKS[0])
    assert num_flops == 64 * (6 * 440_466_432 * 1024 + 6 * 28 * 2048 * 1024**2 + 6 * 1024 * 151936 * 768)
    assert num_flops / 989e12 / (65536 / 45582) == pytest.approx(0.17, abs=0.001)  # the MFU that was measured


def test_measured_seconds_come_out_within_ten_percent():
    """At 7.1 s for 768 steps a step reads 1.19 GB of weights and 256 · 640 · 114688 bytes of keys and values."""
    found = expected_seconds(workload_of(), QWEN3_600M, H100)
    assert found["generate"] == pytest.approx(7.1, rel=0.1) and found["score"] == pytest.approx(0.465, rel=0.1)
    assert seconds("update", QWEN3_600M, Sequences(64, 64, 256, 768), H100) == pytest.approx(65536 / 45582, rel=0.1)
    assert seconds("update", QWEN3_600M, Sequences(32, 128, 256, 768), H100) == pytest.approx(2.785, rel=0.1)
    step_bytes = 2 * (440_466_432 + 1024 * 151936) + 256 * 640 * 114688
    assert step_bytes * 768 / 3.35e12 / found["generate"] == pytest.approx(0.646, abs=0.01)  # of the peak


def test_other_runs_and_cards_are_extrapolated():
    found = expected_seconds(workload_of(), QWEN3_600M, H100)
    h200 = expected_seconds(workload_of(), QWEN3_600M, named_card("H200"))
    assert h200["update"] == found["update"] and h200["generate"] == pytest.approx(found["generate"] * 3.35 / 4.8)
    half = expected_seconds(replace(workload_of(), num_ranks=2), QWEN3_600M, H100)
    assert half["update"] == pytest.approx(found["update"] / 2) and half["score"] == pytest.approx(found["score"] / 2)
    recomputed = expected_seconds(workload_of(model=ModelConfig(gradient_checkpointing=True)), QWEN3_600M, H100)
    assert recomputed["update"] == pytest.approx(found["update"] * 4 / 3)
    embedded = expected_seconds(replace(workload_of(), sampler="embedded"), QWEN3_600M, H100)
    assert "generate" not in embedded and embedded["update"] == found["update"]


def test_what_is_said(monkeypatch):
    work, monkey = workload_of(), monkeypatch.setattr
    text = expected_text(work, QWEN3_600M, "H100")
    assert "expected a step on H100, at most: generate 7.1 s, score 0.47 s, update 5." in text
    assert "measured on NVIDIA H100 80GB HBM3, 2026-11-28" in text and "extrapolated" in text
    assert "embedded sampler was not measured" in expected_text(replace(work, sampler="embedded"), QWEN3_600M, "A100")
    with pytest.raises(ValueError, match=r"unknown card 'Voodoo2': known are B200, H200, "):
        expected_text(work, QWEN3_600M, "Voodoo2")
    monkey(torch.cuda, "is_available", lambda: True)
    monkey(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert "on H200" in expected_text(work, QWEN3_600M)
    monkey(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    nothing = [expected_text(work, QWEN3_600M), expected_text(replace(work, dtype=torch.float32), QWEN3_600M)]
    nothing.append(expected_text(replace(work, device=torch.device("cpu")), QWEN3_600M, "H100"))
    assert [line.rpartition("nothing was measured ")[2] for line in nothing][::2] == ["on Tesla V100", "on a CPU"]
    assert all("nothing was measured" in line and " s," not in line for line in nothing)
    assert card_of("NVIDIA H100 PCIe").flops_per_s < card_of("NVIDIA H100 80GB HBM3").flops_per_s


def test_the_command_says_it(countdown_folder, capsys):
    arguments = ["plan", "--model.path", str(countdown_folder), "--prompt-tokens", "11", "--memory-gib", "8"]
    arguments += ["--sampler.max-new-tokens", "16"]
    assert main(arguments) == 0
    assert "nothing was measured on a CPU" in capsys.readouterr().out
    assert main([*arguments, "--device", "cuda", "--card", "L40S"]) == 0
    assert "expected a step on L40S, at most: " in capsys.readouterr().out
    assert main([*arguments, "--device", "cuda", "--card", "nonsense"]) == 2
    assert "unknown card 'nonsense'" in capsys.readouterr().err
