"""docs/rewards.md, followed: each file under its name, each command in its order, with a tiny model of letters."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from letter_model import save_letter_model

import fastrl
from fastrl.records.jsonl import read_jsonl

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rewards.md"
PACKAGES = Path(fastrl.__file__).parent.parent
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
RUNS = set(re.findall("[a-z]+", "first given several judge trl columns chats saved sums parquet stops judged"))
DRIVER = """
import runpy, shlex, sys
from fastrl.cli import main
for line in sys.stdin.read().splitlines():
    program, *sys.argv = shlex.split(line)
    status = main(sys.argv) if program == "fastrl" else bool(not runpy.run_path(sys.argv[0], run_name="__main__"))
    print(f"== {line}: exit status {int(status)}", flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page was followed; what was said is in said.txt."""
    root = tmp_path_factory.mktemp("page")
    model = save_letter_model(root / "my-model", "".join(map(chr, range(32, 127))))
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHAT}))
    commands = []
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if kind == "sh":
            commands += block.splitlines()
        else:
            name, _, text = block.removeprefix("# ").partition("\n")
            (root / name).write_text(text)
    environment = {
        "PYTHONPATH": f"{PACKAGES}:{root}",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(
        command, cwd=root, env=environment, input="\n".join(commands), capture_output=True, text=True, timeout=400
    )
    (root / "said.txt").write_text(done.stdout + done.stderr)
    failed = [line for line in done.stdout.splitlines() if re.match(r"== .*: exit status [^0]", line)]
    assert done.returncode == 0 and not failed, (failed, done.stderr[-3000:])
    assert done.stdout.count("exit status 0") == len(commands)
    return root


def rollouts(folder: Path, name: str) -> list[dict]:
    return read_jsonl(folder / "runs" / name / "rollouts" / "step-000001.jsonl.gz")


def test_every_run_of_the_page_made_a_step(folder):
    assert {path.name for path in (folder / "runs").iterdir()} == RUNS
    assert all(len(rollouts(folder, run)) == 16 for run in RUNS)


def test_what_was_given_in_python_is_named_resumed_and_evaluated(folder):
    assert 'name = "python:close"' in (folder / "runs/given/config.toml").read_text()
    assert json.loads((folder / "given.json").read_text())["num_problems"] == 4


def test_the_sum_its_parts_and_their_metrics(folder):
    rows = rollouts(folder, "several")
    for row in rows:
        assert row["rewards"] == {"exact": row["rewards"]["exact"], "brevity": -len(row["completion"]) / 10}
        whole = 2 * row["rewards"]["exact"] + 0.2 * row["rewards"]["brevity"]
        assert row["reward"] == pytest.approx(min(whole, 0) if row["finish_reason"] == "length" else whole)
    (line,) = read_jsonl(folder / "runs/several/metrics.jsonl")
    assert line["reward/brevity/mean"] == pytest.approx(sum(row["rewards"]["brevity"] for row in rows) / 16)
    better = [row["rewards"]["brevity"] for row in rows if row["advantage"] > 0]
    assert line["reward/brevity/positive"] == pytest.approx(sum(better) / len(better))
    assert line["reward/brevity/judged_share"] == 1.0


def test_rewards_of_trl_get_lists_and_none_is_left_out(folder):
    rows = rollouts(folder, "trl")
    assert all(row["rewards"]["unique_characters"] == len(set(row["completion"])) / 10 for row in rows)
    expected = [float(r["completion"][-1].isdigit()) if r["completion"] else None for r in rows]
    assert [row["rewards"]["ends_in_digit"] for row in rows] == expected


def test_columns_and_chats_reach_the_prompt(folder):
    assert {row["prompt"] for row in rollouts(folder, "columns")} == {"2+2=", "3+5="}
    chats = [row["prompt"] for row in rollouts(folder, "chats")]
    assert {tuple(m["role"] for m in chat) for chat in chats} == {("user",), ("system", "user")}
    assert 'template = "auto"' in (folder / "runs/chats/config.toml").read_text()


def test_completions_end_at_the_stops_of_the_page(folder):
    for row in rollouts(folder, "stops"):
        assert "=" not in row["completion"][:-1] and 5 not in row["completion_ids"][:-1]
        if row["completion"].endswith("="):
            assert row["finish_reason"] == "stop" and len(row["completion_ids"]) == len(row["completion"])


def test_cut_completions_are_scored_as_they_are(folder):
    scored = read_jsonl(folder / "scored.jsonl")
    assert [row["reward"] for row in scored] == [1.0, 0.0]
    assert {row["finish_reason"] for row in rollouts(folder, "judged")} >= {"length"}
    assert not any(row["reason"] == "truncated" for row in rollouts(folder, "judged"))
