"""`fastrl init`: the folder runs as it is, nothing is written over, questions and flags say the same."""

import json
import tomllib

import pytest

from fastrl.cli import main
from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.records.jsonl import read_jsonl


def test_the_folder_trains_and_evaluates_as_it_is(countdown_folder, tmp_path, monkeypatch, capsys):
    assert main(["init", str(tmp_path / "mine"), "--model", str(countdown_folder)]) == 0
    assert f"next: cd {tmp_path / 'mine'} && fastrl train config.toml" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mine")
    assert main(["train", "config.toml", "--run.num-steps", "2"]) == 0
    steps = [row for row in read_jsonl(tmp_path / "mine/run/metrics.jsonl") if "reward/mean" in row]
    assert len(steps) == 2 and steps[0]["rollouts/num_negative"] + steps[0]["rollouts/num_zero"] == 64
    model = ["--model.path", "run/checkpoints/step-000002"]
    assert main(["eval", "config.toml", *model, "--evaluation.num-samples", "2"]) == 0
    assert json.loads((tmp_path / "mine/eval.json").read_text())["num_problems"] == 20


def test_what_no_flag_says_takes_a_default_that_is_said(tmp_path, capsys):
    assert main(["init", str(tmp_path / "a")]) == 0
    assert "model: Qwen/Qwen3-0.6B (not given, no terminal to ask)" in capsys.readouterr().out
    assert load_config(TrainConfig, tmp_path / "a/config.toml").model.path == "Qwen/Qwen3-0.6B"


def test_on_a_terminal_it_asks_for_what_no_flag_says(tmp_path, monkeypatch):
    answers = iter(["", "math", "", "grpo"])
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    assert main(["init", str(tmp_path / "a")]) == 0
    config = tomllib.loads((tmp_path / "a/config.toml").read_text())
    assert len(asked) == 4 and asked[0] == "model, a folder or a hub id [Qwen/Qwen3-0.6B]: "
    assert (config["model"]["path"], config["task"]["name"]) == ("Qwen/Qwen3-0.6B", "math")
    assert config["algorithm"]["objective"] == "grpo"


@pytest.mark.parametrize(
    ("flags", "files", "task"),
    [
        ([], {"config.toml", "reward.py", "train.jsonl", "test.jsonl"}, {"name": "reward:reward"}),
        (["--task", "math"], {"config.toml", "train.jsonl", "test.jsonl"}, {"name": "math", "test": "test.jsonl"}),
        (["--task", "countdown-words"], {"config.toml"}, {"name": "countdown-words"}),
        (["--task", "math", "--train", "openai/gsm8k:main"], {"config.toml"}, {"train": "openai/gsm8k:main"}),
        (["--train", "x/y"], {"config.toml", "reward.py"}, {"name": "reward:reward", "train": "x/y"}),
    ],
)
def test_files_by_task(flags, files, task, tmp_path):
    assert main(["init", str(tmp_path / "a"), *flags]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    config = load_config(TrainConfig, tmp_path / "a/config.toml")
    assert task.items() <= vars(config.task).items()
    assert config.evaluation.at_end == ("--train" not in flags)  # no test split is known beside data of one's own


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "reward.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "reward.py: there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["reward.py"]
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert "def reward(prompt" in (tmp_path / "reward.py").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "nrs"], "objective = 'nrs' is unknown, did you mean 'nsr'?"),
        (["--task", "mth"], "unknown task 'mth'"),
    ],
)
def test_bad_answers_write_nothing(flags, message, tmp_path, capsys):
    assert main(["init", str(tmp_path / "a"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a").exists()
