"""Countdown with values, abstentions and confidence, against numbers worked out by hand; and their measures."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fastrl.cli import main
from fastrl.config.schema import TaskConfig
from fastrl.tasks import Score, find_kind, load_task
from fastrl.tasks.countdown import solvable, split_of
from fastrl.tasks.countdown_abstain import measures

ROOT = Path(__file__).resolve().parent.parent
ROW = {"numbers": [3, 5, 7, 2], "target": 24}


def judged(task: str, completion: str, **row) -> Score:
    return find_kind(task).reward("3 5 7 2=24:", completion, **ROW, **row)


def test_values_are_what_samples_vote_on():
    found = {text: judged("countdown-values", text) for text in ("3*5+7+2", "2+7+5*3", "3+5+7+2", "24", "3*", "")}
    assert [s.answer for s in found.values()] == ["24", "24", "17", None, None, None]
    assert [s.reward for s in found.values()] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "score", "confidence"),
    [
        ("3*5+7+2:0", Score(1.0, "ok"), 0.05),
        ("3*5+7+2:9", Score(1.0, "ok"), 0.95),
        (" 3*5+7+2 : 4 ", Score(0.0, "confidence"), None),
        ("3+5+7+2:5", Score(0.0, "value"), 0.55),
        ("3*5+7+2", Score(0.0, "confidence"), None),
        ("3*5+7+2:", Score(0.0, "confidence"), None),
        ("3*5+7+2:10", Score(0.0, "confidence"), None),
        ("3*5+7+2:²", Score(0.0, "confidence"), None),
        (":5", Score(0.0, "empty"), 0.55),
        ("3*5:7+2:5", Score(0.0, "syntax"), 0.55),
    ],
)
def test_a_digit_behind_a_colon_states_confidence(completion, score, confidence):
    assert judged("countdown-confidence", completion) == score
    assert find_kind("countdown-confidence").read_confidence(completion) == (confidence and pytest.approx(confidence))


def test_to_abstain_is_never_correct_and_said_to_be_right_or_wrong():
    for has_solution, suffix in ((True, ""), (False, ", no solution")):
        for text in ("()", " ( ) "):
            assert judged("countdown-abstain", text, has_solution=has_solution) == Score(0.0, f"abstained{suffix}")
        assert judged("countdown-abstain", "(())", has_solution=has_solution).reason == f"syntax{suffix}"
    assert judged("countdown-abstain", "3*5+7+2", has_solution=True) == Score(1.0, "ok")
    assert judged("countdown-abstain", "3+5+7+2", has_solution=False).reason == "value, no solution"


def test_truthfulness_by_hand():
    """Of 20: 6 solvable right, 5 solvable wrong, 1 solvable abstained; 2 hopeless abstained, 5 answered; 1 cut."""
    counts = {
        "ok": 6,
        "value": 4,
        "syntax": 1,
        "abstained": 1,
        "abstained, no solution": 2,
        "value, no solution": 5,
        "truncated": 1,
    }
    found = measures({reason: count / 20 for reason, count in counts.items()})
    assert found == pytest.approx(
        {
            "accuracy": 6 / 20,
            "hallucination": 11 / 20,
            "truthfulness": -5 / 20,
            "abstained": 3 / 20,
            "accuracy_solvable": 6 / 12,
            "abstained_solvable": 1 / 12,
            "abstained_unsolvable": 2 / 7,
        }
    )
    assert measures({"value": 1.0})["abstained_solvable"] == 0 and "abstained_unsolvable" not in measures(
        {"value": 1.0}
    )
    assert "accuracy_solvable" not in measures({"value, no solution": 1.0})


def test_a_share_of_the_problems_has_no_solution_and_splits_do_not_meet():
    config = TaskConfig(name="countdown-abstain", num_train=400, num_validation=100, num_test=50)
    task = load_task(config)
    for split, count in (("train", 400), ("validation", 100), ("test", 50)):
        problems = getattr(task, split)
        rows = [p.row for p in problems]
        assert len(rows) == count and sum(not row["has_solution"] for row in rows) == round(0.3 * count)
        for row in rows:
            pair = tuple(sorted(row["numbers"])), row["target"]
            assert (pair in solvable()) == row["has_solution"] and split_of(*pair) == split
    assert [p.id for p in load_task(config).test] == [p.id for p in task.test]
    assert not task.test[0].row["has_solution"] or any(not p.row["has_solution"] for p in task.test[:20])  # mixed


def test_demonstrations_of_abstaining_are_of_the_train_split():
    pairs = find_kind("countdown-abstain").demonstrations(Random(0), 2000)
    kinds = Counter()
    for prompt, text in pairs:
        numbers, _, target = prompt.rstrip(":").partition("=")
        pair = tuple(sorted(map(int, numbers.split()))), int(target)
        assert split_of(*pair) == "train"
        kinds[pair in solvable(), text == "()"] += 1
    assert kinds[True, True] / (kinds[True, True] + kinds[True, False]) == pytest.approx(0.1, abs=0.03)
    assert kinds[False, True] / 2000 == pytest.approx(0.15, abs=0.03) and not kinds[False, False]


def test_demonstrated_confidence_knows_nothing():
    pairs = find_kind("countdown-confidence").demonstrations(Random(0), 2000)
    digits = Counter(text[-1] for _, text in pairs)
    assert set(digits) == set("0123456789") and all(abs(n - 200) < 60 for n in digits.values())
    assert all(text[-2] == ":" for _, text in pairs)


@pytest.mark.parametrize(("value", "message"), [(None, "no field 'has_solution'"), ("yes", "must be true or false")])
def test_rows_say_whether_there_is_a_solution(value, message):
    with pytest.raises(ValueError, match=f"rows:1: .*{message}"):
        find_kind("countdown-abstain").read_row(ROW | {"has_solution": value}, "rows:1")


def run_eval(output: Path, task: str) -> dict:
    arguments = [
        "eval",
        "--model.path",
        str(ROOT / "models" / "countdown"),
        "--task.name",
        task,
        "--task.num-test",
        "10",
    ]
    arguments += ["--task.num-workers", "1", "--sampler.max-new-tokens", "12", "--evaluation.num-samples", "8"]
    assert main([*arguments, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_an_evaluation_prints_and_keeps_the_measures(tmp_path, capsys):
    found = run_eval(tmp_path / "abstain.json", "countdown-abstain")
    truth = found["measures"]
    assert truth["accuracy"] == found["pass_at_k"]["1"]["mean"] > 0 == truth["abstained"]
    assert truth["truthfulness"] == pytest.approx(2 * truth["accuracy"] - 1)  # it never abstains
    assert f"{truth['truthfulness']:.3f}" in capsys.readouterr().out
    assert run_eval(tmp_path / "plain.json", "countdown")["measures"] == {}
