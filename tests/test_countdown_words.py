"""Countdown in words: what counts as an answer, and rows as the hub's dataset has them."""

import json

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import find_kind, load_task
from fastrl.tasks.countdown_words import in_words, reward
from fastrl.tasks.hugging_face import _split_source


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("44 + 19 is 63, and so on. <answer>44 + 19 + 35</answer>", "ok"),
        ("<answer>(44+19)+35 = 98</answer>", "ok"),
        ("<answer>1</answer> no: <answer>\n35 + (19 + 44)\n</answer> done", "ok"),
        ("I mean <answer> or <answer>44+19+35</answer>", "ok"),
        ("44 + 19 + 35", "no answer"),
        ("<answer>44 + 19</answer>", "numbers"),
        ("<answer>44 + 19 + 35 + 35</answer>", "numbers"),
        ("<answer>44 * 19 - 35</answer>", "value"),
        ("<answer>44 / (19 - 19) + 35</answer>", "value"),
        ("<answer>__import__('os')</answer>", "syntax"),
        ("<answer>44 ** 19 ** 35</answer>", "syntax"),
        ("<answer>-44 + 19 + 35</answer>", "syntax"),
        ("<answer>044 + 19 + 35</answer>", "syntax"),
        ("<answer></answer>", "syntax"),
        ("<answer>" + "(" * 300 + "44</answer>", "syntax"),
    ],
)
def test_what_counts(completion, reason):
    score = reward("", completion, numbers=[44, 19, 35], target=98)
    assert (score.reward, score.reason) == (float(reason == "ok"), reason)


def test_division_is_exact():
    assert reward("", "<answer>(1 ÷ 3) × 6</answer>", numbers=[1, 3, 6], target=2).reward == 1.0
    assert reward("", "<answer>7 / 2</answer>", numbers=[7, 2], target=3).reason == "value"


def test_rows_of_the_hub_from_a_local_dataset(tmp_path):
    pytest.importorskip("datasets")
    rows = [{"nums": [44, 19, 35], "target": 98}, {"nums": [1, 2, 3], "target": 7}, {"nums": [2, 2, 4], "target": 8}]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(tmp_path / "hub")
    config = TaskConfig(name="countdown-words", train=f"{source}:train[1:]", test=f"{source}:train[:1]")
    task = load_task(config)
    assert [p.row["target"] for p in task.train] == [7, 8] and task.template == "chat"
    assert task.test[0].row == {"numbers": [44, 19, 35], "target": 98}
    assert task.test[0].prompt == in_words([44, 19, 35], 98)
    assert task.test[0].prompt.startswith("Use the numbers 44, 19, 35, each exactly once")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a/b:train[10:]", ("a/b", None, "train[10:]")),
        ("a/b:main:train[:10%]", ("a/b", "main", "train[:10%]")),
        ("a/b:main:test", ("a/b", "main", "test")),
    ],
)
def test_parts_of_a_split(source, parts):
    assert _split_source(source, "train") == parts


def test_generated_problems_are_countdowns():
    config = TaskConfig(name="countdown-words", num_train=5, num_test=5)
    plain, words = (find_kind(name).generate(config, "test") for name in ("countdown", "countdown-words"))
    assert [p.row for p in words] == [p.row for p in plain] and words[0].id == plain[0].id
    assert words[0].prompt == in_words(**plain[0].row)
