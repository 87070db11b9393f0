"""What the rules say of an expression, and demonstrations that read it."""

from collections import Counter
from random import Random

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import load_task
from fastrl.tasks.countdown import reward
from fastrl.tasks.countdown_critique import critique
from fastrl.tasks.countdown_told import told_demonstrations
from fastrl.tasks.expression import MAX_LENGTH

ROW = {"numbers": [7, 3, 5, 2], "target": 24}


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("3*7+5-2", "24"),
        (" 3 * 7 - 5 * 2", "11"),
        ("2-3*(7+5)", "-34"),
        ("7*7-5*2", "(-7+3)"),
        ("3*7+5", "(+2)"),
        ("3*7+5-2-2*1", "(-1-2)"),
        ("24", "(-24+2+3+5+7)"),
        ("3*7+", "()"),
        ("", "()"),
        ("uses 7 twice", "()"),
        ("(" * MAX_LENGTH + "3", "()"),
        ("9" * 13, "()"),
    ],
)
def test_the_rules_name_what_is_wrong(completion, said):
    assert critique(completion, ROW) == said


def test_a_task_says_what_its_kind_knows():
    task = load_task(TaskConfig("countdown-told", num_train=1), splits=("train",))
    (problem,) = task.train
    answer = task.answer_of(problem)
    assert reward(problem.prompt, answer, **problem.row).reward == 1
    assert len(answer) == min(map(len, task.solutions(problem.row)))
    assert task.critique_of(problem, answer) == str(problem.row["target"])


def kind_of(told: str, said: str, found: str) -> str:
    """Of a demonstration, by what stands behind its problem."""
    if not told:
        return "plain"
    if not said:
        return "write"
    if said in ("+:", "-:"):
        return "verdict"
    if said[1] == " ":
        return "answer"
    assert said == f"{found}:"
    return "rules"


def test_demonstrations_do_what_the_critique_asks_for():
    """Every kind is there, words are true, and what follows them is right; the same for the same seed."""
    pairs = told_demonstrations(Random(3), 600)
    assert pairs == told_demonstrations(Random(3), 600) != told_demonstrations(Random(4), 600)
    kinds = Counter()
    for prompt, completion in pairs:
        problem, _, told = prompt.partition(":")
        numbers, _, target = problem.partition("=")
        row = {"numbers": [int(n) for n in numbers.split()], "target": int(target)}
        attempt, _, said = told.partition("=")
        is_right = bool(told) and reward("", attempt, **row).reward == 1
        word = "+" if is_right else "-"
        kind = kind_of(told, said, critique(attempt, row))
        kinds[kind] += 1
        if kind == "write":
            assert completion == critique(attempt, row)
            continue
        assert reward("", completion, **row).reward == 1
        assert completion == attempt or not is_right
        if kind == "verdict":
            assert said == f"{word}:"
        if kind == "answer":
            assert said == f"{word} {completion}:"
    assert kinds["plain"] == pytest.approx(200, abs=50)
    assert all(kinds[kind] == pytest.approx(100, abs=40) for kind in ("write", "verdict", "answer", "rules"))
