"""Evaluation of the warm-started countdown model, through the command line, and the comparison of two evaluations."""

import json
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.evaluation import load_evaluation


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
    assert 1 < first["distinct_answers"] <= 8 and first["distinct_correct_answers"] <= first["distinct_answers"]
    assert first["pass_at_k"]["1"]["mean"] == first["maj_at_k"]["1"]["mean"] > 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    again = run_eval(warm_folder, tmp_path / "b.json", "--base", str(tmp_path / "a.json"))
    assert again["problems"] == first["problems"]  # same seed, same draws
    against = again["against_base"]
    assert against["newly_solved"] == against["lost"] == [] and against["pass_at_k"]["8"]["mean"] == 0
    output = capsys.readouterr().out
    assert "pass@k" in output and "solved" in output


def test_an_evaluation_samples_as_it_is_told(warm_folder, tmp_path):
    greedy = run_eval(warm_folder, tmp_path / "greedy.json", "--evaluation.temperature", "0")
    assert greedy["distinct_answers"] == 1.0
    short = run_eval(warm_folder, tmp_path / "short.json", "--evaluation.max-new-tokens", "3")
    assert short["mean_length"] <= 3 and short["truncated_share"] > 0


def test_files_that_are_no_evaluations_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no evaluation file"):
        load_evaluation(tmp_path / "none.json")
    (tmp_path / "x.json").write_text('{"loss": 1}')
    with pytest.raises(ValueError, match="not an evaluation"):
        load_evaluation(tmp_path / "x.json")


def test_doctor_names_what_will_run(capsys):
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "sampler: embedded" in output and "kernel token_logprobs: native" in output and "torch: 2" in output
