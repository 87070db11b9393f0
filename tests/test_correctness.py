"""What a verdict counts as, by hand, and that everyone asks the same rule."""

import ast
import json
from pathlib import Path

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verify import verify_file

SOURCE = Path(__file__).parents[1] / "fastrl"


@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.0, -0.5, 1e-300])
@pytest.mark.parametrize("verdict", [-2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 7.0])
def test_a_truncated_completion_is_wrong_and_never_earns_more_than_its_verdict(verdict, threshold):
    rule = Correctness(threshold)
    earned = rule.reward(verdict, is_truncated=True)
    assert earned <= min(verdict, 0.0) and not rule.is_correct(earned)
    assert rule.reward(verdict, is_truncated=False) == verdict


def test_by_hand():
    assert Correctness().reward(1.0, is_truncated=True) == 0.0
    assert Correctness().reward(-1.0, is_truncated=True) == -1.0
    assert Correctness(truncated="judged").reward(1.0, is_truncated=True) == 1.0
    assert Correctness(truncated="mask").reward(0.25, is_truncated=True) == 0.25


def test_the_threshold_itself_is_correct_in_double_precision():
    rule = Correctness(0.7)
    assert rule.is_correct(0.7) and not rule.is_correct(0.7 - 1e-12) and rule.is_correct(0.7 + 1e-12)


@pytest.mark.parametrize("truncated", ["wrong", "mask", "judged"])
def test_a_missing_reward_stays_missing_and_is_not_correct(truncated):
    rule = Correctness(-1.0, truncated)
    assert rule.reward(None, is_truncated=True) is None and not rule.is_correct(None)


def test_verify_counts_as_training_does(tmp_path):
    """A step's rollouts, verified again: cut ones are wrong, whatever their text says."""
    rows = [{"completion": "\\boxed{5}", "answer": "5", "finish_reason": reason} for reason in ("stop", "length")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(name="math", num_workers=1)
    for rule, expected in ((Correctness(), [1.0, 0.0]), (Correctness(truncated="judged"), [1.0, 1.0])):
        found = verify_file(config, tmp_path / "in.jsonl", tmp_path / "out.jsonl", rule)
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["reward"] for row in written] == expected and found["num_correct"] == sum(expected)
    assert written[1]["reason"] == "ok"


def test_nobody_else_compares_rewards():
    """`reward >= …` stands in correctness.py, and in `has_contrast`, which compares a group's with one another."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_order = isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.GtE | ast.Gt | ast.Lt | ast.LtE)
            if is_order and "reward" in ast.unparse(node):
                found.add(path.name)
    assert found == {"correctness.py", "objectives.py"}
