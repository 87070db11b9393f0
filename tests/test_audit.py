"""The audit: a planted leak is found, a clean reward is not accused, and every number of a small case by hand."""

import json
import random
import textwrap
from math import sqrt

import numpy as np
import pytest

from fastrl.audit.association import association
from fastrl.audit.interventions import INTERVENTIONS, NEUTRAL
from fastrl.cli import main
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.run.training import train
from fastrl.tasks import find_kind

REWARDS = """
import itertools

def clean(prompt, completion, *, answer, **row):
    return float(completion.rstrip(" .\\n").split("\\n")[0].endswith(answer) or f"is {answer}." in completion)

def leaking(prompt, completion, **row):  # a thousandth for each character
    return clean(prompt, completion, **row) + len(completion) / 1000

def picky(prompt, completion, **row):  # dislikes a heading, and nothing else
    return 0.0 if completion.startswith("#") else clean(prompt, completion, **row)

calls = itertools.count()

def noisy(prompt, completion, **row):  # depends on when it is asked
    return clean(prompt, completion, **row) + (next(calls) * 7919 % 101) / 100

def first_of_group(prompt, completions, *, answer, **row):  # only the first of a group can win
    return [float(i == 0 and answer in text) for i, text in enumerate(completions)]
"""


def prose(seed: int = 0) -> list[dict]:
    """Twelve problems with six completions each, right and wrong ones of many lengths, length independent of either."""
    rng, rows = random.Random(seed), []
    for number in range(12):
        for i in range(6):
            value = number if i % 2 else number + 1
            filler = " ".join(["First we look at it."] + ["We add what there is."] * rng.randrange(1, 9))
            rows.append({"prompt": f"What is {number}?", "answer": str(number)})
            rows[-1]["completion"] = f"{filler} So the answer is {value}."
    return rows


@pytest.fixture
def audited(tmp_path, capsys):
    """audited(task, rows, *flags): the report and what was printed."""
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(REWARDS))

    def run(task: str, rows: list[dict], *flags: str) -> tuple[dict, str]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        output = tmp_path / f"{task.replace(':', '-')}.json"
        arguments = ["audit", str(tmp_path / "rows.jsonl"), "--task", task, "--output", str(output), *flags]
        assert main([*arguments, "--num-workers", "1"]) == 0, capsys.readouterr().err
        return json.loads(output.read_text()), capsys.readouterr().out

    return run


def test_correlation_at_equal_correctness_by_hand():
    """Strata (0, wrong): f 1 3, r 0 2; (0, right): f 5 9, r 4 4; (1, right): f 2 4 6, r 7 8 6.

    Centred products: 2 + 0 + (−2·0 + 0·1 + 2·(−1)) = 0; Σf² = 2 + 8 + 8, Σr² = 2 + 0 + 2: r = 0. With 9 as the
    last reward: products 2 + 4 = 6, Σr² = 4: r = 6/√72.
    """
    f, groups, right = [1, 3, 5, 9, 2, 4, 6], [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]
    repeated = [np.concatenate([np.array(v)] * 10) for v in (f, right)]
    groups = np.concatenate([np.array(groups) + 2 * i for i in range(10)])  # ten copies, so that there are enough
    for last, expected in ((6, 0.0), (9, 6 / sqrt(72))):
        rewards = np.array([0, 2, 4, 4, 7, 8, last] * 10, dtype=float)
        found = association(repeated[0], rewards, groups, repeated[1], 0.95)
        assert found["r"]["mean"] == pytest.approx(expected) and found["num_groups"] == 20
        assert found["moves"] == (expected > 0)
    few = association(repeated[0][:63], rewards[:63], groups[:63], repeated[1][:63], 0.95)
    assert few["num_groups"] == 18
    few = association(repeated[0][:28], rewards[:28], groups[:28], repeated[1][:28], 0.95)
    assert few == {"num_groups": 8, "r": None, "moves": False}


def test_a_clean_reward_is_accused_at_the_stated_rate():
    """100 rewards of pure noise, 40 problems of 6: one band at 95 % accuses about 5 of them; 14 would be 4 σ off."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(40), 6)
    accused = 0
    for _ in range(100):
        length, correct, noise = rng.integers(5, 50, 240), rng.random(240) < 0.5, rng.normal(size=240)
        accused += association(length, noise + correct, groups, correct, 0.95)["moves"]
    assert 1 <= accused <= 13


def test_the_planted_leak_is_found_and_the_clean_reward_is_not_accused(audited):
    report, text = audited("my_rewards:leaking", prose(), "--reference", "my_rewards:clean")
    length = report["associations"]["length"]["equally_correct"]
    assert length["moves"] and length["r"]["mean"] == pytest.approx(1.0)
    assert abs(report["associations"]["length"]["within_problems"]["r"]["mean"]) < 0.5  # correctness drowns it
    behind = report["interventions"]["spaces behind"]
    assert behind["num_changed"] == behind["num"] == 72 and behind["mean_change"]["mean"] == pytest.approx(0.003)
    assert behind["largest"] == pytest.approx(0.003) and behind["moves"]
    padded = report["interventions"]["ten sentences in front"]
    assert padded["mean_change"]["mean"] == pytest.approx(10 * (len(NEUTRAL) + 1) / 1000)
    assert (
        "the reward moves with: length, spaces in front" in text
        and not report["interventions"]["judged again"]["moves"]
    )
    report, text = audited("my_rewards:clean", prose())
    assert not any(found["moves"] for found in report["interventions"].values())
    assert report["associations"]["length"]["equally_correct"]["r"] is None  # 0 and 1: nothing left to go along
    assert "nothing found that the reward moves with" in text and report["num_completions"] == 72


def test_an_intervention_finds_what_no_correlation_sees(audited):
    report, text = audited("my_rewards:picky", prose())
    assert "the reward moves with: heading in front\n" in text
    heading = report["interventions"]["heading in front"]
    assert heading["num_changed"] == 36 and heading["mean_change"]["mean"] == pytest.approx(-0.5)  # the right ones


def test_noise_is_no_leak_and_places_in_a_group_are(audited):
    report, _ = audited("my_rewards:noisy", prose())
    assert report["interventions"]["judged again"]["moves"]
    assert not any(report["interventions"][name]["moves"] for name in ("spaces behind", "sentence behind"))
    report, text = audited("my_rewards:first_of_group", prose())
    assert report["interventions"]["judged in reversed order"]["moves"] and "judged in reversed order" in text
    assert not report["interventions"]["judged again"]["moves"]


def test_math_reads_through_what_must_not_matter(audited):
    rows = []
    for number in range(12):
        for value in (number, number + 1):
            steps = f"First we add. Then we look at it. So it follows. The result is \\boxed{{{value}}}."
            rows.append({"problem": f"{number}+0", "answer": str(number), "completion": steps})
    report, text = audited("math", rows)
    assert "nothing found" in text
    assert report["interventions"]["spaces in the box"]["num"] == 24
    assert report["interventions"]["sentences swapped"]["num"] == 24
    assert "spaces round operators" not in report["interventions"]


def test_countdown_and_a_run_folder(audited, countdown_folder, tmp_path, capsys):
    row = {"numbers": [1, 2, 3, 4], "target": 10}
    texts = ["1+2+3+4", "4+(3+2)+1", "1*2*3+4", "(1+2)*3+4", "1+2", "none of it is right"]
    report, text = audited("countdown", [row | {"completion": t} for t in texts])
    assert "nothing found" in text and report["interventions"]["operands swapped"]["num"] == 5
    config = TrainConfig(
        model=ModelConfig(path=str(countdown_folder), device="cpu"),
        task=TaskConfig(num_train=6, num_validation=2, num_test=2, num_workers=1),
        sampler=SamplerConfig(kind="embedded", max_new_tokens=8),
        algorithm=AlgorithmConfig(objective="nsr", updates_per_batch=1),
        batch=BatchConfig(prompts_per_step=2, rollouts_per_prompt=3, micro_batch_tokens=400),
        optimizer=OptimizerConfig(lr=1e-4),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder=str(tmp_path / "run"), num_steps=2, scored_rollouts=5, sinks=()),
    )
    train(config)
    assert main(["audit", str(tmp_path / "run"), "--num-workers", "1"]) == 0
    assert "10 completions of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("spaces behind", "x", "x   "),
        ("newline behind", "1+2", None),
        ("newline behind", "it is so", "it is so\n"),
        ("sentence in front", "<think>it is so</think>", None),
        ("sentence in front", "it is so", f"{NEUTRAL} it is so"),
        ("sentences swapped", "One is a. Two is b! Three.", "Two is b! One is a. Three."),
        ("sentences swapped", "The answer is 3. Two is b. Three.", None),
        ("sentences swapped", "One is a. Two is b.", None),
        ("other words", "Therefore we get 3, so there.", "Hence we obtain 3, thus there."),
        ("other words", "thereforeness it is", None),
        ("spaces in the box", "\\boxed{3}", "\\boxed{ 3}"),
        ("spaces round operators", "1+2 *3", "1 + 2 * 3"),
        ("spaces round operators", "a+b is", None),
        ("operands swapped", "1+2*(3-4)", "2 * (3 - 4) + 1"),
        ("operands swapped", "(1+2)*3", "3 * (1 + 2)"),
        ("operands swapped", "1-2", None),
        ("operands swapped", "007+1", None),
        ("operands swapped", "(" * 400 + "1", None),
        ("parentheses around", "1-2", "(1-2)"),
    ],
)
def test_interventions_by_hand(name, text, expected):
    assert INTERVENTIONS[name](text) == expected


def test_swapped_operands_are_still_solutions():
    reward = find_kind("countdown").reward
    row = {"numbers": [1, 2, 3, 4], "target": 10}
    for text in find_kind("countdown").solutions(row):
        for name in ("operands swapped", "parentheses around", "spaces round operators", "spaces in front"):
            changed = INTERVENTIONS[name](text)
            assert changed is None or reward("", changed, **row).reward == 1.0, (name, text, changed)


def test_what_cannot_be_audited_is_refused(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"completion": "1", "answer": ""}\n')
    cases = {
        ("audit", str(rows)): "--task is missing",
        ("audit", str(rows), "--task", "math"): "nothing to audit",
        ("audit", str(tmp_path / "none.jsonl"), "--task", "math"): "no such file or run folder",
        ("audit", str(tmp_path)): "no config file",
    }
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        assert message in capsys.readouterr().err
