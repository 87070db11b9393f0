"""Evaluation of the warm-started countdown model, through the command line, and the comparison of two evaluations."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastrl.cli import main
from fastrl.evaluation.results import evaluation_metrics, load_evaluation, metric_value
from fastrl.statistics import mean_reward


@pytest.fixture
def warm_folder() -> Path:
    return Path(__file__).resolve().parent.parent / "models" / "countdown"


def run_eval(folder, output, *arguments: str) -> dict:
    base = ["eval", "--model.path", str(folder), "--task.num-test", "6", "--task.num-workers", "1"]
    base += ["--sampler.max-new-tokens", "12", "--evaluation.num-samples", "8", "--output", str(output)]
    assert main([*base, *arguments]) == 0
    return json.loads(output.read_text())


def test_eval_command_writes_json_plot_and_table(warm_folder, tmp_path, capsys):
    first = run_eval(warm_folder, tmp_path / "a.json")
    assert (first["num_problems"], first["num_samples"]) == (6, 8)
    assert list(first["pass_at_k"]) == ["1", "2", "4", "8"]
    assert all(set(v) == {"mean", "low", "high"} for v in first["pass_at_k"].values())
    assert {"id", "num_correct", "num_samples"} <= set(first["problems"][0])
    assert 0 < first["mean_token_entropy"] < 4 and first["mean_length"] <= 12
    assert 1 / 8 <= first["majority_share"] < 1 and first["calibration"] is None
    slope = first["pass_slope"]
    rise = first["pass_at_k"]["8"]["mean"] - first["pass_at_k"]["1"]["mean"]
    assert 0 < slope["low"] < slope["mean"] < slope["high"] and slope["mean"] == pytest.approx(rise / 3, rel=0.2)
    assert all(p["distinct_correct"] <= min(p["num_correct"], p["distinct_answers"]) for p in first["problems"])
    assert 1 < first["distinct_answers"] <= 8 and first["distinct_correct_answers"] <= first["distinct_answers"]
    assert first["pass_at_k"]["1"]["mean"] == first["maj_at_k"]["1"]["mean"] > 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    again = run_eval(warm_folder, tmp_path / "b.json", "--base", str(tmp_path / "a.json"))
    assert again["problems"] == first["problems"]  # same seed, same draws
    against = again["against_base"]
    assert against["newly_solved"] == against["lost"] == [] and against["pass_at_k"]["8"]["mean"] == 0
    output = capsys.readouterr().out
    assert "pass@k" in output and "solved" in output and "reward:" not in output
    assert first["reward"]["mean"] == first["pass_at_k"]["1"]["mean"] and not first["reward"]["is_graded"]


def test_an_evaluation_samples_as_it_is_told(warm_folder, tmp_path):
    greedy = run_eval(warm_folder, tmp_path / "greedy.json", "--evaluation.temperature", "0")
    assert greedy["distinct_answers"] == 1.0 == greedy["majority_share"] and greedy["pass_slope"]["mean"] == 0
    short = run_eval(warm_folder, tmp_path / "short.json", "--evaluation.max-new-tokens", "3")
    assert short["mean_length"] <= 3 and short["truncated_share"] > 0


GRADED = """
def reward(prompt, completion, answer):
    return completion.count(answer) / 16 + 0.25
"""


def test_graded_rewards_have_a_mean_and_a_band(warm_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "graded.py").write_text(GRADED)
    rows = [json.dumps({"prompt": f"3 5 7 {n}=24:", "answer": str(n)}) for n in range(1, 7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    task = ["--task.name", "graded:reward", "--task.test", "rows.jsonl", "--truncated", "judged"]
    found = run_eval(warm_folder, tmp_path / "graded.json", *task)
    reward = found["reward"]
    assert found["task"] == "graded:reward" and found["pass_at_k"]["8"]["mean"] == 0 and reward["is_graded"]
    assert 0.25 < reward["low"] < reward["mean"] < reward["high"] < 1
    band = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**reward)
    assert f"reward: {band} (mean over problems, 95 % band)" in capsys.readouterr().out
    assert metric_value(found, "mean_reward") == evaluation_metrics(found)["eval/mean_reward"] == reward["mean"]


def test_the_mean_reward_by_hand():
    rewards_PG = np.array([[0.0, 1.0], [0.5, np.nan], [np.nan, np.nan]])
    interval = mean_reward(rewards_PG)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)  # two problems of ½, one without a verdict
    assert mean_reward(rewards_PG[2:]) is None


def test_files_that_are_no_evaluations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no evaluation file"):
        load_evaluation(tmp_path / "none.json")
    band = {"mean": 0.5, "low": 0.4, "high": 0.6}
    whole = {"num_problems": 1, "num_samples": 2, "truncated_share": 0.0, "settings": {}, "pass_at_k": {"1": band}}
    whole["problems"] = [{"id": "a"}]
    (tmp_path / "x.json").write_text(json.dumps(whole))
    assert load_evaluation(tmp_path / "x.json") == whole
    without = [{k: v for k, v in whole.items() if k != name} for name in whole]
    wrong = [
        {"pass_at_k": [band]},
        {"pass_at_k": {"1": 0.5}},
        {"problems": [{}]},
        {"settings": 1},
        {"num_samples": "x"},
    ]
    for damaged in [{"loss": 1}, [whole], *without, *(whole | one for one in wrong)]:
        (tmp_path / "x.json").write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match="not an evaluation"):
            load_evaluation(tmp_path / "x.json")


def test_doctor_names_what_will_run(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "sampler: embedded" in output and "kernel token_logprobs: native" in output and "torch: 2" in output


CONFIDENT = """
def reward(prompt, completion, **row):
    return float(completion.endswith("1"))
"""


def test_distinct_correct_counts_expressions_and_confidence_is_read(tmp_path, monkeypatch):
    """A sampler that says what it is told: the rest of the evaluation is the real one."""
    from fastrl.config.schema import EvaluationConfig, ScratchConfig, TaskConfig
    from fastrl.evaluation.evaluator import Evaluator
    from fastrl.policy.model import Policy
    from fastrl.policy.scratch import scratch_model, scratch_tokenizer
    from fastrl.rollouts import Rollouts
    from fastrl.sample_and_judge import Arena
    from fastrl.tasks import load_task
    from fastrl.tasks.correctness import Correctness
    from fastrl.tasks.problem import Problem
    from fastrl.tasks.verify import make_pool

    config = ScratchConfig(characters="0123456789+-*()=: .confide")
    tokenizer = scratch_tokenizer(config)
    model = scratch_model(config, tokenizer, seed=0)

    class Told:
        def __init__(self, texts):
            self.texts = texts

        def generate(self, prompts, settings, seeds):
            ids = [[*tokenizer(t).input_ids, tokenizer.eos_token_id] for t in self.texts]
            yield Rollouts.of(prompts * len(ids), ids, groups=[0] * len(ids))

    def evaluate(task, problem, texts):
        with make_pool(task.reward, TaskConfig(num_workers=1)) as verifier:
            arena = Arena(task, tokenizer, Told(texts), verifier, Policy(model), Correctness())
            return Evaluator(arena, 4096, 32).run([problem], EvaluationConfig(num_samples=len(texts)))

    countdown = load_task(TaskConfig(name="countdown"), splits=())
    problem = Problem("p", "1 2 3 4=10:", {"numbers": [1, 2, 3, 4], "target": 10})
    found = evaluate(countdown, problem, ["1+2+3+4", "1 + 2+3+4", "4+3+2+1", "1+2+3-4"])
    assert (found["distinct_correct_answers"], found["distinct_answers"], found["majority_share"]) == (2, 3, 0.5)
    assert found["calibration"] is None

    (tmp_path / "rewards_of_confidence.py").write_text(CONFIDENT)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1"}\n')
    monkeypatch.chdir(tmp_path)
    own = load_task(TaskConfig(name="rewards_of_confidence:reward", train="rows.jsonl"))
    texts = ["confidence: 0.1", "confidence: 0.9", "confidence: 1", "5"]  # right when it ends in 1
    found = evaluate(own, own.train[0], texts)["calibration"]
    assert found["stated_share"] == 0.75 and found["accuracy"] == pytest.approx(2 / 3)
    assert found["brier"] == pytest.approx((0.81 + 0.81 + 0) / 3) and found["auroc"] == 0.5
