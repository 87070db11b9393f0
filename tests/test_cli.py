"""The command line besides training: scoring files, warm starts, help, prompts in a chat template."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrl.cli import main
from fastrl.config.schema import TaskConfig
from fastrl.prompts.tokens import prompt_ids
from fastrl.tasks import load_task


def test_verify_scores_a_file_in_order(tmp_path, capsys):
    rows = [
        {"completion": "(1+2)*4", "numbers": [1, 2, 4], "target": 12, "note": "kept"},
        {"completion": "1+2+4", "numbers": [1, 2, 4], "target": 12},
        {"completion": "12", "numbers": [1, 2, 4], "target": 12},
        {"completion": "__import__('os')", "numbers": [1, 2, 4], "target": 12},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "--task", "countdown", "--input", str(source), "--output", str(output)]) == 0
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["reward"], r["reason"]) for r in scored] == [
        (1.0, "ok"),
        (0.0, "value"),
        (0.0, "numbers"),
        (0.0, "syntax"),
    ]
    assert [r["completion"] for r in scored] == [r["completion"] for r in rows] and scored[0]["note"] == "kept"
    assert "num_correct: 1" in capsys.readouterr().out


def test_verify_names_the_row_that_lacks_something(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text('{"completion": "\\\\boxed{2}", "answer": "2"}\n{"completion": "3"}\n')
    assert main(["verify", "--task", "math", "--input", str(source), "--output", str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "in.jsonl:2" in error and "answer" in error
    assert not (tmp_path / "out.jsonl").exists()


def test_paths_on_the_command_line_may_begin_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in.jsonl").write_text('{"completion": "3", "answer": "3"}\n')
    assert main(["verify", "--task", "math", "--input=~/in.jsonl", "--output=~/out.jsonl"]) == 0
    assert (tmp_path / "out.jsonl").exists()
    assert main(["compare", "~/a.json", "~/b.json"]) == 2
    assert main(["train", "~/none.toml"]) == 2
    assert str(tmp_path / "none.toml") in capsys.readouterr().err


def test_warmup_makes_a_model_that_learns(tmp_path, capsys):
    output = tmp_path / "model"
    arguments = ["--scratch.hidden-size", "32", "--scratch.num-layers", "1", "--scratch.num-heads", "2"]
    arguments += ["--data.num-steps", "60", "--data.batch-size", "32", "--output", str(output)]
    arguments += ["--optimizer.lr", "1e-2"]
    assert main(["warmup", *arguments]) == 0
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert losses[-1] < 2.0  # a uniform guess over 21 tokens costs 3.04 nats
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(output)) == 21


def test_warmup_from_a_file(tmp_path, countdown_folder, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1 2=3:", "completion": "1+2"}\n')
    arguments = ["--model.path", str(countdown_folder), "--data.file", str(rows), "--data.num-steps", "50"]
    arguments += ["--optimizer.lr", "1e-2"]
    assert main(["warmup", *arguments, "--data.batch-size", "4", "--output", str(tmp_path / "out")]) == 0
    assert float(capsys.readouterr().out.split("loss ")[1].split()[0]) < 0.1
    rows.write_text('{"prompt": "1 2=3:"}\n')
    assert main(["warmup", *arguments]) == 2
    assert "rows.jsonl:1: needs 'prompt' and 'completion'" in capsys.readouterr().err


def test_usage(capsys):
    assert main([]) == 2 and main(["--help"]) == 0 and main(["trian"]) == 2
    assert (
        "train | watch | warmup | eval | compare | ledger | verify | audit | plan | settings | doctor"
        in capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code == 0 and "--algorithm.objective" in shown and "--algorithm.ppo-clip.low" in shown
    assert "w-reinforce: REINFORCE with a weight on its positive half." in shown


def test_old_flags_are_all_named_with_what_they_are_called_now(capsys):
    assert main(["train", "--algorithm.clip-low", "0.1", "--run.seed", "3", "--algorithm.importance=token"]) == 2
    error = capsys.readouterr().err
    assert "algorithm.clip_low is now algorithm.ppo_clip.low" in error
    assert "algorithm.importance is now algorithm.importance.kind" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm.objective", "nrs"], "algorithm.objective = 'nrs' is unknown, did you mean 'nsr'?"),
        (["--algorithm.overlong.penalty", "-1"], "algorithm.overlong.penalty must be at least 0, got -1"),
    ],
)
def test_flags_are_checked_like_files(flags, message, capsys):
    assert main(["plan", "--model.path", "none", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_flag_that_its_section_refuses_ends_with_what_would_be_right(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--model.path", "none", "--algorithm.ppo-clip.dual", "0.5"])
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stop.value.code == 2 and "dual must be above 1, or 0 for none, got 0.5" in error


def test_settings_prints_the_reference(capsys):
    assert main(["settings"]) == 0 and "### `[algorithm.ppo_clip]`" in capsys.readouterr().out
    assert main(["settings", "x"]) == 2


def test_chat_prompts_go_through_the_models_own_template(countdown_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(countdown_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    rows = Path(tmp_path / "rows.jsonl")
    rows.write_text('{"prompt": "1+2"}\n')
    task = load_task(TaskConfig(name="operator:add", train=str(rows), template="chat"), splits=("train",))
    assert prompt_ids(task, task.train[0], tokenizer) == tokenizer("<1+2>=").input_ids
    plain = load_task(TaskConfig(name="operator:add", train=str(rows), template="none"), splits=("train",))
    assert prompt_ids(plain, plain.train[0], tokenizer) == tokenizer("1+2").input_ids
