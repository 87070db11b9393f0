"""reasoning-gym: problems by split and seed, the dataset's own scores, and no model text that runs."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import Score, gym, load_task
from fastrl.tasks.gym_entries import HASH_DEPENDENT
from fastrl.tasks.verify import check_reward


def test_reasoning_gym_problems_are_scored_by_the_dataset():
    pytest.importorskip("reasoning_gym")
    config = TaskConfig(name="reasoning-gym:leg_counting", num_train=20, num_validation=5, num_test=5)
    task = load_task(config)
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 5, 5)
    problem = task.train[0]
    gold = problem.row["entry"]["answer"]
    assert (
        task.reward(problem.prompt, f"so <answer>1</answer> no <answer> {gold} </answer>", **problem.row).reward == 1.0
    )
    assert task.reward(problem.prompt, gold, **problem.row) == Score(1.0, "ok")
    assert task.reward(problem.prompt, "<answer>-1</answer>", **problem.row).reward == 0.0
    assert task.reward(problem.prompt, " ", **problem.row) == Score(0.0, "empty")
    check_reward(task, config)


def test_reasoning_gym_splits_do_not_overlap_and_follow_the_seed():
    pytest.importorskip("reasoning_gym")
    prompts = {
        (seed, split): [p.prompt for p in gym.generate_problems("chain_sum", seed, split, 50)]
        for seed in (0, 1)
        for split in ("train", "validation", "test")
    }
    assert prompts[0, "train"] == [p.prompt for p in gym.generate_problems("chain_sum", 0, "train", 50)]
    questions = [question for group in prompts.values() for question in group]
    assert len(set(questions)) >= 0.95 * len(questions)


def test_reasoning_gym_never_runs_the_models_text(tmp_path):
    pytest.importorskip("reasoning_gym")
    marker = tmp_path / "it ran"
    attacks = [
        f"__import__('pathlib').Path({str(marker)!r}).touch()",
        f"[__import__('pathlib').Path({str(marker)!r}).touch()]",
        f"open({str(marker)!r}, 'w')",
        f"().__class__.__base__.__subclasses__() or open({str(marker)!r}, 'w')",
    ]
    for name in sorted(gym.EVAL_SCORERS | gym.SYMPY_SCORERS | gym.CALCULATING_SCORERS):
        (problem,) = gym.generate_problems(name, 0, "train", 1)
        for attack in attacks:
            score = gym.GymReward(name)("", f"<answer>{attack}</answer>", **problem.row)
            assert score.reward <= 0.01, (name, attack)
            assert not marker.exists(), (name, attack)


def test_reasoning_gym_never_runs_the_text_of_a_data_file(tmp_path):
    pytest.importorskip("reasoning_gym")
    marker = tmp_path / "it ran"
    attack = f"[__import__('pathlib').Path({str(marker)!r}).touch()]"
    for name, path in {"bitwise_arithmetic": ("metadata", "problem"), "number_sorting": ("answer",)}.items():
        (problem,) = gym.generate_problems(name, 0, "train", 1)
        entry = json.loads(json.dumps(problem.row["entry"]))
        (entry["metadata"] if len(path) > 1 else entry)[path[-1]] = attack
        gym.GymReward(name)("", "<answer>[1]</answer>", **gym.gym_kind(name).read_row(entry, "f:1"))
        assert not marker.exists(), name
    for name, path in gym.SYMPY_FIELDS.items():
        (problem,) = gym.generate_problems(name, 0, "train", 1)
        entry = json.loads(json.dumps(problem.row["entry"]))
        assert gym.gym_kind(name).read_row(entry, "f:1")["entry"] == entry
        (entry["metadata"] if len(path) > 1 else entry)[path[-1]] = attack
        with pytest.raises(ValueError, match=r"f:1: '.*' must be a formula"):
            gym.gym_kind(name).read_row(entry, "f:1")


def test_the_calculator_of_whole_numbers():
    assert gym.calculate("((0x123 + 0x456) << (0x9 >> 1))") == (0x123 + 0x456) << 4
    assert gym.calculate("~5 & 0xff ^ -(3 * 2) | 1") == ~5 & 0xFF ^ -(3 * 2) | 1
    for text in ("1 << 10**9", "2 ** 3", "1 << 200000", "(1 << 90000) * (1 << 90000)", "True", "1.5", "[1]", "f()"):
        with pytest.raises(ValueError, match=r"bits|no arithmetic"):
            gym.calculate(text)


def test_entries_that_came_through_json_are_judged_as_in_memory():
    """Of every dataset two entries, each with its own answer, the other's, and two wrong ones."""
    datasets = pytest.importorskip("reasoning_gym.factory").DATASETS
    num_judged = 0
    for name in sorted(set(datasets) - {"composite"}):
        pair = [p.row["entry"] for p in gym.generate_problems(name, 3, "test", 2)]
        reward, kind = gym.GymReward(name), gym.gym_kind(name)
        for entry in pair:
            read = kind.read_row(json.loads(json.dumps(entry)), "f:1")
            for answer in (str(pair[0]["answer"]), str(pair[1]["answer"]), "1", "no"):
                expected = _score(reward, answer, {"entry": entry}), type(entry["metadata"])
                assert (_score(reward, answer, read), dict) == expected, (name, answer)
                num_judged += 1
    assert num_judged > 800


def _score(reward: gym.GymReward, answer: str, row: dict) -> tuple[float, str]:
    with contextlib.redirect_stdout(io.StringIO()):  # some scorers print
        score = reward("", f"<answer>{answer}</answer>", **row)
    return score.reward, score.reason


def test_every_scorer_that_evaluates_is_known():
    """Reads the installed package: a new release with another such scorer must be looked at."""
    reasoning_gym = pytest.importorskip("reasoning_gym")
    evaluates = re.compile(
        r"(?<![\w.])eval\((?:(?:user_)?answer|entry|problem)|(?<!def )\bparse_expr\((?:answer|meta|entry)"
    )
    found = {
        path.stem
        for path in Path(reasoning_gym.__file__).parent.rglob("*.py")
        if evaluates.search(path.read_text(encoding="utf-8"))
    }
    assert found == gym.EVAL_SCORERS | gym.SYMPY_SCORERS | gym.CALCULATING_SCORERS


def test_formulas_still_reach_the_sympy_scorers():
    pytest.importorskip("reasoning_gym")
    for name in ("polynomial_multiplication", "simple_integration", "puzzle24", "countdown"):
        for problem in gym.generate_problems(name, 0, "train", 5):
            gold = problem.row["entry"]["metadata"].get("expression") or problem.row["entry"]["answer"]
            assert gym.GymReward(name)("", f"<answer>{gold}</answer>", **problem.row).reward == 1.0, (name, gold)


PROBLEMS = """
from fastrl.tasks.gym import generate_problems
from fastrl.tasks.gym_entries import HASH_DEPENDENT
for name in sorted(HASH_DEPENDENT):
    print([(p.id, p.prompt, p.row) for p in generate_problems(name, 3, "train", 5)])
"""


def test_every_process_has_the_same_problems():
    pytest.importorskip("reasoning_gym")
    said = [
        subprocess.run(
            [sys.executable, "-c", PROBLEMS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(said[0]) == len(HASH_DEPENDENT)
