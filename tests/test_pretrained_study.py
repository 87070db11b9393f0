"""The experiment on a pretrained model: its task, and the whole of it in miniature on a model made on the spot."""

import json
from pathlib import Path

import arithmetic
import pretrained
import pytest
from transformers import AutoTokenizer

from fastrl.config.schema import ScratchConfig, TaskConfig
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.tasks import load_task


def test_the_reward_reads_the_first_line_only():
    for completion, value in (
        ("12\n", 1.0),
        ("12", 1.0),
        (" 12 \n3*4=12", 1.0),
        ("13\n12", 0.0),
        ("1\n2", 0.0),
        ("", 0.0),
    ):
        assert arithmetic.reward("3*4=", completion, answer="12") == value
    assert arithmetic.reward("3-5=", "-2\n", answer="-2") == 1.0
    assert arithmetic.reward("1+1=", "__import__('os').abort()\n", answer="2") == 0.0


def test_problems_are_split_once_and_solved_lines_come_from_training():
    train, test = arithmetic.problems()
    assert (train, test) == arithmetic.problems()
    asked = [[row["prompt"].split("\n")[-1] for row in rows] for rows in (train, test)]
    assert len(train) == 200 and len(test) == 100 and len({*asked[0], *asked[1]}) == 300
    for row, problem in zip(train + test, asked[0] + asked[1], strict=True):
        *shots, last = row["prompt"].split("\n")
        assert last == problem and len(shots) == 8 and arithmetic.reward("", row["answer"], answer=row["answer"]) == 1.0
        assert not {shot.partition("=")[0] + "=" for shot in shots} & {problem, *asked[1]}


@pytest.fixture
def base_model(tmp_path) -> Path:
    config = ScratchConfig(
        characters="0123456789+-*=\n", hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48
    )
    tokenizer = scratch_tokenizer(config)
    folder = tmp_path / "base"
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_experiment_in_miniature_goes_on_where_it_stopped(base_model, tmp_path):
    """The first call runs out of time at once, the second does everything, the third finds everything done."""
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(pretrained.OutOfTime):
        pretrained.Study(pretrained.SCALES["dry"], [1], base_model, work, minutes=0).run()
    pretrained.Study(pretrained.SCALES["dry"], [1], base_model, work, minutes=10).run()
    evaluation = json.loads((work / "psr.seed1.json").read_text())
    assert evaluation["num_problems"] == 100 and evaluation["num_samples"] == 4
    assert len((work / "psr.seed1" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (
        AutoTokenizer.from_pretrained(work / "model")("1+1=\n").input_ids[-1]
        in json.loads((work / "model" / "generation_config.json").read_text())["eos_token_id"]
    )
    changed = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    pretrained.Study(pretrained.SCALES["dry"], [1], base_model, work, minutes=10).run()
    assert changed == {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}


def test_problems_load_as_a_task(tmp_path):
    arithmetic.write(tmp_path)
    task = load_task(TaskConfig(name="arithmetic:reward", train=str(tmp_path / "train.jsonl"), num_train=0))
    assert len(task.train) == 200 and task.reward(task.train[0].prompt, "x", **task.train[0].row) == 0.0
