"""The step on real parts: rewards shaped, groups resampled, verifiers that break, samples scored."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.learning.overlong import Overlong
from fastrl.prompts.stream import PromptStream
from fastrl.records import checkpoints, rollout_files
from fastrl.records.jsonl import read_jsonl
from fastrl.records.step_metrics import rollout_metrics
from fastrl.rollouts import Rollouts, text_column
from fastrl.run.divergence import DivergedError
from fastrl.run.training import train
from fastrl.tasks import Problem
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import VerifierError
from fastrl.trainer import with_contrast

REWARDS = """
import os, signal
def length(prompt, completion, **row):
    return len(completion) / 4
def even(prompt, completion, **row):
    return float(len(completion) % 2 == 0)
def signed(prompt, completion, **row):
    return 1.0 if len(completion) % 2 == 0 else -1.0
def rare(prompt, completion, **row):
    return float("7" in completion and "(" in completion)
def constant(prompt, completion, **row):
    return 0.5
def enormous(prompt, completion, **row):
    return 1e30 * len(completion)
def kills_its_worker_once(prompt, completion, **row):
    if completion and not os.path.exists("killed"):  # the check before the run has an empty completion
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return even(prompt, completion)
def breaks(prompt, completion, **row):
    if len(completion) > 2:
        raise KeyError("gold answer")
    return 0.0
"""


@pytest.fixture
def run(tmp_path, monkeypatch, countdown_folder):
    """run(reward name, steps, **algorithm) -> (rows of metrics.jsonl, all written rollouts, run folder)."""
    (tmp_path / "rewards_under_test.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{i} {i + 1}="}}\n' for i in range(1, 9)))
    monkeypatch.chdir(tmp_path)

    def start(reward: str, num_steps: int = 1, **algorithm) -> tuple[list[dict], list[dict], Path]:
        config = TrainConfig(
            model=ModelConfig(path=str(countdown_folder)),
            task=TaskConfig(name=f"rewards_under_test:{reward}", train="rows.jsonl", num_workers=1),
            sampler=SamplerConfig(max_new_tokens=6),
            algorithm=replace(AlgorithmConfig(objective="reinforce"), **algorithm),
            batch=BatchConfig(4, 8, 400),
            evaluation=EvaluationConfig(at_end=False),
            run=RunConfig(folder="run", num_steps=num_steps, scored_rollouts=32, sinks=()),
        )
        folder = train(config)
        rollouts = [r for p in sorted((folder / "rollouts").iterdir()) for r in read_jsonl(p)]
        return read_jsonl(folder / "metrics.jsonl"), rollouts, folder

    return start


def test_truncated_completions_are_wrong_or_masked(run, tmp_path):
    rows, rollouts, _ = run("length", truncated="wrong", correct_threshold=0.01)
    cut = [r for r in rollouts if r["finish_reason"] == "length"]
    assert cut and all(r["reward"] == 0 and r["reason"] == "truncated" and r["advantage"] == -1 for r in cut)
    assert rows[0]["rollouts/truncated_share"] == len(cut) / len(rollouts)
    (tmp_path / "run").rename(tmp_path / "first")
    rows, rollouts, _ = run("length", truncated="mask", correct_threshold=0.01)
    cut = [r for r in rollouts if r["finish_reason"] == "length"]
    assert cut and all(r["reward"] > 0 and r["advantage"] == 0 for r in cut)
    assert rows[0]["update/num_kept"] == len(rollouts) - len(cut)


@pytest.mark.parametrize("objective", ["grpo", "reinforce"])
def test_with_rewards_below_zero_truncation_does_not_pay(run, objective):
    rows, rollouts, _ = run("signed", objective=objective, correct_threshold=0.0)
    cut = [r for r in rollouts if r["finish_reason"] == "length"]
    verdicts = [1.0 if len(r["completion"]) % 2 == 0 else -1.0 for r in cut]
    assert cut and all(r["reward"] <= min(v, 0.0) for r, v in zip(cut, verdicts, strict=True))
    correct = [r for r in rollouts if r["finish_reason"] == "stop" and len(r["completion"]) % 2 == 0]
    assert rows[0]["reward/correct_share"] == len(correct) / len(rollouts)
    if objective == "reinforce":
        assert all(r["advantage"] == (1 if r in correct else -1) for r in rollouts)


def test_a_missing_reward_makes_no_contrast_and_enters_no_share():
    rewards_R = np.array([0.1, math.nan, 0.1, 0.2, math.nan, math.nan, 0.3, 0.1 + 0.2])
    rollouts = Rollouts.of(
        [[1]] * 8,
        [[2, 3]] * 8,
        groups=np.repeat(np.arange(4), 2),
        rewards_R=rewards_R,
        penalties_R=np.zeros(8),
        reasons_R=text_column([""] * 8),
        credits_N=np.ones(16),
        policy_logprobs_N=np.zeros(16),
        entropy_N=np.zeros(16),
    )
    problems = [Problem(str(i), f"p{i}", {}) for i in range(4)]
    kept_problems, kept = with_contrast(problems, rollouts)
    assert kept_problems == [problems[1]] and kept.rewards_R.tolist() == [0.1, 0.2] and not kept.groups_R.any()
    metrics = rollout_metrics(rollouts, rollouts.take([]), Correctness(0.2))
    assert metrics["groups/equal_share"] == pytest.approx(2 / 3)  # of three groups that have rewards
    assert metrics["reward/correct_share"] == pytest.approx(3 / 5) and metrics["rollouts/num_unverified"] == 3


def test_overlong_completions_lose_reward(run):
    _, rollouts, _ = run("length", overlong=Overlong(4, 1.0), truncated="mask", objective="dr-grpo")
    for rollout in rollouts:
        assert rollout["penalty"] == pytest.approx(min(0, (6 - 4 - len(rollout["completion_ids"])) / 4))
        assert rollout["reward"] == len(rollout["completion"]) / 4  # the verdict stays what it was
    for group in range(4):
        part = [r for r in rollouts if r["group"] == group]
        shaped = [r["reward"] + r["penalty"] for r in part]
        kept = [r["finish_reason"] == "stop" for r in part]
        expected = [(s - sum(shaped) / 8) * k for s, k in zip(shaped, kept, strict=True)]
        assert [r["advantage"] for r in part] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("reward", "times"), [("constant", 1), ("even", 0)])
def test_a_reward_that_finds_nothing_right_is_said_once(run, capsys, reward, times):
    run(reward, num_steps=11)
    assert capsys.readouterr().out.count("every completion of 5 steps was wrong") == times


def test_fractional_rewards_under_a_sign_objective_are_announced_once(run, capsys):
    run("length", num_steps=3)
    assert capsys.readouterr().out.count("rewards are more than right and wrong") == 1


def test_dynamic_sampling_replaces_groups_without_contrast(run, tmp_path):
    plain, _, _ = run("rare", objective="grpo")
    (tmp_path / "run").rename(tmp_path / "plain")
    sampled, _, folder = run("rare", objective="grpo", dynamic_sampling_rounds=20)
    assert plain[0]["groups/equal_share"] > 0
    assert sampled[0]["groups/equal_share"] < plain[0]["groups/equal_share"]
    assert sampled[0]["rollouts/num"] == plain[0]["rollouts/num"] == 32
    state = checkpoints.load_state(checkpoints.latest_sound(folder / "checkpoints", print))
    assert state["position"] > 4  # the data moved on by every prompt that was drawn


def test_a_verifier_that_breaks_stops_the_run_and_leaves_a_checkpoint(run, tmp_path):
    with pytest.raises(VerifierError, match="gold answer"):
        run("breaks")
    assert checkpoints.latest_sound(tmp_path / "run" / "checkpoints", print).name == "step-000000"


def test_gradients_that_stay_non_finite_stop_the_run_with_the_last_good_weights(run, tmp_path, countdown_folder):
    with pytest.raises(DivergedError, match=r"last 3 steps.*before step 3.*rollouts/step-000003.jsonl.gz"):
        run("enormous", num_steps=9, objective="dr-grpo")
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [(r["update/num_updates"], r["update/num_nonfinite"]) for r in rows] == [(0, 1)] * 3
    checkpoint = checkpoints.latest_sound(tmp_path / "run" / "checkpoints", print)
    assert checkpoint.name == "step-000003"
    assert_same_weights(checkpoint, countdown_folder)


def test_a_batch_without_any_advantage_is_no_update_but_moves_the_data_on(run, countdown_folder):
    rows, _, folder = run("constant", num_steps=4, objective="grpo", truncated="mask", updates_per_batch=2)
    assert [(r["update/num_updates"], r["update/num_empty"]) for r in rows] == [(0, 2)] * 4
    checkpoint = checkpoints.latest_sound(folder / "checkpoints", print)
    tensors, state = checkpoints.load_tensors(checkpoint), checkpoints.load_state(checkpoint)
    assert (state["step"], state["position"]) == (4, 16)
    assert not [name for name in tensors if name.startswith("exp_avg")]  # AdamW has not taken a step
    assert_same_weights(checkpoint, countdown_folder)


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (a, b))
    assert all(first[name].equal(second[name]) for name in first)


def test_a_verifier_worker_killed_during_a_run_changes_nothing(run, tmp_path):
    expected, rollouts, folder = run("even", num_steps=2)
    folder.rename(tmp_path / "undisturbed")
    rows, others, folder = run("kills_its_worker_once", num_steps=2)
    assert (tmp_path / "killed").exists()
    assert others == rollouts
    assert [r["rollouts/num_unverified"] for r in rows] == [0, 0]
    assert [r["grad_norm"] for r in rows] == [r["grad_norm"] for r in expected]
    assert_same_weights(*(p / "checkpoints" / "step-000002" for p in (folder, tmp_path / "undisturbed")))


def test_entropy_and_mismatch_are_split_by_correctness(run, monkeypatch):
    monkeypatch.setattr(rollout_files, "DECIMALS", 17)  # the records as exact as the metrics
    rows, rollouts, _ = run("even")
    assert len(rollouts) == 32
    for name, is_correct in (("correct", True), ("wrong", False)):
        part = [r for r in rollouts if (r["reward"] >= 1) == is_correct]
        values = [v for r in part for v in r["entropy"]]
        assert rows[0][f"entropy/{name}"] == pytest.approx(sum(values) / len(values))
        gaps = [abs(a - b) for r in part for a, b in zip(r["trainer_logprobs"], r["sampler_logprobs"], strict=True)]
        assert rows[0][f"mismatch/mean_abs_{name}"] == pytest.approx(sum(gaps) / len(gaps))
    assert rows[0]["reward/mean"] == pytest.approx(sum(r["reward"] for r in rollouts) / 32)


@pytest.mark.parametrize("algorithm", [{"kl_coef": 0.1}, {"preset": "paper-code", "updates_per_batch": 2}])
def test_kl_and_the_authors_preset_run(run, algorithm):
    rows, _, _ = run("even", num_steps=2, objective="w-reinforce", **algorithm)
    assert all(math.isfinite(row["grad_norm"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[0]["update/num_updates"] == algorithm.get("updates_per_batch", 1)


def test_prompts_come_in_shuffled_epochs_and_resume_by_position():
    problems = [Problem(str(i), f"p{i}", {}) for i in range(7)]
    stream = PromptStream(problems, seed=3)
    order = [p.id for _ in range(7) for p in stream.take(3)]
    assert sorted(order[:7]) == sorted(order[7:14]) == sorted(order[14:]) == [str(i) for i in range(7)]
    assert order[:7] != order[7:14] and order[:7] != [str(i) for i in range(7)]
    assert [p.id for p in PromptStream(problems, seed=3, position=5).take(16)] == order[5:]
    assert [p.id for p in PromptStream(problems, seed=4).take(7)] != order[:7]
