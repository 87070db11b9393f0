"""`fastrl tasks`: the list, and what one task looks like."""

import json
import re
from pathlib import Path

import pytest

from fastrl.cli import main
from fastrl.tasks.choose import BRIDGES, TASKS


def said(capsys, *arguments: str, status: int = 0) -> str:
    assert main(["tasks", *arguments]) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_the_list_names_every_task(capsys):
    text = said(capsys)
    for name in (*TASKS, *BRIDGES):
        assert f" {name}" in text or text.startswith(name) or f"\n{name}" in text, name
    assert "Countdown: reach a target with the given numbers" in text and " leg_counting " in text
    assert "<module>:<function>" in text and "<module>:<class>" in text


def test_the_page_shows_what_is_printed(capsys):
    page = (Path(__file__).resolve().parent.parent / "docs" / "environments.md").read_text()
    (shown,) = re.findall(r"```text\n\$ fastrl tasks countdown\n(.*?)```", page, re.DOTALL)
    assert said(capsys, "countdown") == shown


def test_a_task_shows_a_problem_and_what_its_reward_says(capsys):
    text = said(capsys, "countdown", "--template", "qwen")
    assert "    <|im_start|>user\n    3 8 5 4=25:<|im_end|>\n" in text
    assert '{"numbers": [3, 8, 5, 4], "target": 25}' in text
    assert "  reward  1 (ok)\nanswer ''\n  reward  0 (empty)\n" in text


def test_an_answer_is_put_into_the_marks_that_the_reward_looks_for(capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"problem": "What is 2+2?", "answer": "4"}) + "\n")
    text = said(capsys, "math", "--train", str(rows))
    assert "answer '\\\\boxed{4}'\n  reward  1 (ok)" in text and "What is 2+2?\n" in text


def test_an_environment_shows_a_conversation(capsys):
    text = said(capsys, "twenty-questions")
    assert text.startswith("twenty-questions: an environment: the model takes turns\n")
    assert "    turn   W?\n    reply  +\n" in text and "turn ''\n  reward  0 (syntax)\n  reply   the end\n" in text


def test_your_own_reward_is_shown(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("def reward(prompt, completion, **row): return len(completion) - 2.5\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "Hm?"}]}\n')
    text = said(capsys, "mine:reward", "--train", str(tmp_path / "rows.jsonl"), "--reward-folder", str(tmp_path))
    assert "[user] Hm?" in text and "no answer is known" in text and "answer ''\n  reward  -2.5" in text
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hm?", "task": "hm", "entry": ["?"], "answer": "yes"}\n')
    text = said(capsys, "mine:reward", "--train", str(tmp_path / "rows.jsonl"), "--reward-folder", str(tmp_path))
    assert "answer '<answer>yes</answer>'\n  reward  17.5" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [("countdwn", "Did you mean 'countdown'?"), ("math", "set train to"), ("reasoning-gym:leg", "leg_counting")],
)
def test_a_task_that_cannot_be_shown_is_an_error(capsys, name, message):
    assert message in said(capsys, name, status=2)
