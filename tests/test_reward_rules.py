"""Reward rules against numbers worked out by hand, and that they reach training but no evaluation."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from fastrl.config.files import load_config
from fastrl.config.schema import TaskConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train
from fastrl.tasks import Score, load_task
from fastrl.tasks.reward_rules import RULES, find_rule, trained_by
from fastrl.tasks.verify import check_reward, make_pool

ROOT = Path(__file__).resolve().parent.parent
VERDICTS = {
    "right": Score(1.0, "ok", "24"),
    "also right": Score(1.0, "ok", "24"),
    "wrong": Score(0.0, "value", "23"),
    "other": Score(0.0, "value", "7"),
    "no": Score(0.0, "abstained", "()"),
    "unknown": Score(0.0, "different", "\\text{I don't know}"),
    "junk": Score(0.0, "syntax", None),
    "half": Score(0.5, "partial", "12"),
}


def verifier(prompt, completion, **row):
    return VERDICTS[completion.partition(" confidence")[0]]


def scores(rule: str, *texts: str) -> list[Score]:
    task = load_task(TaskConfig(name="countdown"), splits=())
    return trained_by(replace(task, reward=verifier), rule).reward("p", list(texts))


def rewards(rule: str, *texts: str) -> list[float]:
    return [score.reward for score in scores(rule, *texts)]


def test_binary_and_ternary_differ_in_abstentions_alone():
    texts = ["right", "wrong", "no", "unknown", "junk", "half"]
    assert rewards("binary", *texts) == [1, -1, -1, -1, -1, -1]
    assert rewards("ternary", *texts) == [1, -1, 0, 0, -1, -1]
    assert [s.reason for s in scores("ternary", *texts)] == [VERDICTS[t].reason for t in texts]


def test_confidence_is_correctness_less_the_brier_score():
    # 1 − (.8 − 1)²; 0 − .8²; 1 − (0 − 1)²; 0 − 0²; nothing stated: the lowest, −1
    texts = [f"{t} confidence: {q}" for t, q in [("right", 0.8), ("wrong", 0.8), ("right", 0), ("wrong", 0)]]
    assert rewards("confidence", *texts, "right") == pytest.approx([0.96, -0.64, 0.0, 0.0, -1.0])
    assert scores("confidence", "right")[0].reason == "no confidence"


def test_a_true_confidence_is_the_best_one():
    """Of ten samples of which three are right, 0.3 has the highest mean: 0.3 − 0.3 · 0.7."""
    texts = ["right"] * 3 + ["wrong"] * 7
    means = {q: sum(rewards("confidence", *(f"{t} confidence: {q}" for t in texts))) / 10 for q in (0.0, 0.3, 0.4, 1.0)}
    assert max(means, key=means.get) == 0.3 and means[0.3] == pytest.approx(0.09)


def test_the_majority_is_the_first_seen_of_equals_and_may_be_wrong():
    assert rewards("majority", "right", "wrong", "also right") == [1, 0, 1]
    assert rewards("majority", "wrong", "right", "other") == [1, 0, 0]
    assert rewards("majority", "right", "wrong", "wrong", "junk") == [0, 1, 1, 0]
    reasons = [s.reason for s in scores("majority", "right", "wrong", "wrong", "junk")]
    assert reasons == ["wrong label, right", "wrong label, wrong", "wrong label, wrong", "wrong label, wrong"]


def test_completions_without_an_answer_vote_and_win_nothing():
    assert rewards("majority", "junk", "junk", "right") == [0, 0, 0]
    assert rewards("majority", "right", "junk", "right") == [1, 0, 1]
    assert scores("majority", "junk", "right")[1].reason == "no label, right"


def test_the_vote_is_measured():
    """Two groups of two: one with a right label, one with a wrong one that one completion knew better than."""
    task = trained_by(load_task(TaskConfig(name="countdown"), splits=()), "majority")
    reasons = ["right label, right", "right label, wrong", "wrong label, wrong", "wrong label, right"]
    assert task.measured(reasons) == {"label_accuracy": 0.5, "label_missing": 0.0, "accuracy": 0.5}


def test_the_majority_of_the_wrong():
    assert rewards("majority-wrong", "right", "right", "other", "wrong", "wrong") == [0, 0, 0, 1, 1]
    assert rewards("majority-wrong", "right", "also right", "junk") == [0, 0, 0]


def test_inverted_and_format():
    assert rewards("inverted", "right", "wrong", "half") == [0, 1, 0.5]
    assert rewards("format", "right", "wrong", "junk") == [1, 1, 0]


def test_a_coin_does_not_look_and_falls_alike_in_a_resumed_run():
    texts = ["right"] * 4000
    draws = rewards("coin:0.25", *texts)
    assert set(draws) == {0.0, 1.0} and abs(sum(draws) / 4000 - 0.25) < 0.03  # 4.4 standard deviations
    assert draws == rewards("coin:0.25", *texts) and draws != rewards("coin:0.25", "wrong", *texts[1:])
    assert abs(sum(rewards("coin", *texts)) / 4000 - 0.5) < 0.04
    assert set(rewards("coin:0", *texts)) == {0.0} and set(rewards("coin:1", *texts)) == {1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ternery", "unknown task.reward 'ternery'; known: verifier, binary.*Did you mean 'ternary'"),
        ("coin:2", "'coin:2': expected coin:p with a probability p from 0 to 1"),
        ("coin:", "'coin:': expected coin:p"),
        ("coin:nan", "'coin:nan': expected coin:p"),
        ("binary:1", "unknown task.reward 'binary:1'"),
    ],
)
def test_a_rule_that_is_none_is_an_error_before_anything_is_read(name, message):
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(name="countdown", reward=name))


GROUPED = """
def reward(prompt, completions, **row):
    return [float(len(completion)) for completion in completions]
def broken(prompt, completion, **row):
    return float("nan") if completion == "x" else 1.0
"""


def test_rules_take_rewards_of_groups_and_pass_on_their_faults(tmp_path, monkeypatch):
    (tmp_path / "ruled_rewards.py").write_text(GROUPED)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    monkeypatch.chdir(tmp_path)
    verdicts = {}
    for name, rule in (("reward", "binary"), ("broken", "coin")):
        config = TaskConfig(name=f"ruled_rewards:{name}", train="rows.jsonl", reward=rule, num_workers=1)
        task = trained_by(load_task(config), rule)
        with make_pool(task.reward, config) as pool:
            verdicts[name] = pool.score([("p", text, {}) for text in ("", "x", "y")])
    assert [v.reward for v in verdicts["reward"]] == [-1.0, 1.0, 1.0]
    assert all(v.is_fault and "returned nan" in v.reason for v in verdicts["broken"])


def test_every_rule_can_be_sent_to_a_worker():
    config = TaskConfig(name="countdown", num_train=1)
    task = load_task(config, splits=("train",))
    for name in (*RULES, "coin:0.3"):
        check_reward(trained_by(task, name), config)
        assert pickle.loads(pickle.dumps(find_rule(name))) is not None


def test_training_takes_the_rule_and_evaluations_the_verifier(tmp_path):
    config = with_settings(
        load_config(TrainConfig, ROOT / "configs" / "spurious.toml"),
        {
            "model.path": str(ROOT / "models" / "countdown"),
            "task.reward": "coin:0",
            "task.num_validation": 4,
            "task.num_workers": 1,
            "batch.prompts_per_step": 4,
            "evaluation.every": 2,
            "evaluation.num_samples": 8,
            "evaluation.at_end": False,
            "run.num_steps": 2,
            "run.sinks": (),
            "run.folder": str(tmp_path / "run"),
        },
    )
    rows = list(read_jsonl(train(config) / "metrics.jsonl"))
    assert all(row["reward/mean"] == 0 for row in rows if "reward/mean" in row)
    (validated,) = [row for row in rows if "eval/pass_at_8" in row]
    assert validated["eval/pass_at_8"] > 0 and not math.isnan(validated["eval/pass_at_1"])
