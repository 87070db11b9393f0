"""The recipes of docs/extend_tasks.md run as they stand: each block that names its file is written there and used."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastrl import tasks
from fastrl.config.schema import TaskConfig
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import VerifierPool
from fastrl.tasks.verify import check_reward, make_pool, verify_file

RECIPES = Path(__file__).resolve().parent.parent / "docs" / "extend_tasks.md"


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """The blocks as modules of the current folder, that of fastrl.tasks under its last name."""
    blocks = re.findall(r"```python\n(.*?)```", RECIPES.read_text(), re.DOTALL)
    named = {match[1]: block for block in blocks if (match := re.match(r"# (\S+\.py)\n", block))}
    assert set(named) == {"my_module.py", "fastrl/tasks/sorting.py", "novelty.py"}
    for name, block in named.items():
        (tmp_path / Path(name).name).write_text(block)
    (line,) = [block for block in blocks if re.fullmatch(r'\s+"\S+": "\S+",\n', block)]
    for name, place in eval(f"{{{line}}}").items():
        monkeypatch.setitem(tasks.TASKS, name, place.removeprefix("fastrl.tasks."))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sorting", raising=False)


def sorted_digits(problem) -> str:
    return " ".join(map(str, sorted(problem.row["digits"])))


@pytest.mark.usefixtures("files")
def test_a_task_of_its_own_is_one_file_and_one_line():
    config = TaskConfig(name="sorting", num_train=20, num_validation=5, num_test=5)
    task = tasks.load_task(config)
    assert [len(split) for split in (task.train, task.validation, task.test)] == [20, 5, 5]
    assert task == tasks.load_task(config) != tasks.load_task(replace(config, seed=1))
    check_reward(task, config)
    with make_pool(task.reward, config) as pool:
        right = pool.score([(p.prompt, sorted_digits(p), p.row) for p in task.train])
        wrong = pool.score([(p.prompt, "0 1 2 3 4 5", p.row) for p in task.train])
    assert {v.reward for v in right} == {1.0} and {v.reason for v in wrong} == {"different"}
    with pytest.raises(ValueError, match=r"unknown task 'sortin'.*Did you mean 'sorting'"):
        tasks.find_kind("sortin")


@pytest.mark.usefixtures("files")
def test_rows_of_the_new_task_are_read_from_files(tmp_path):
    rows = [{"prompt": "3 1 2 =", "digits": [3, 1, 2], "completion": c} for c in ("1 2 3", "3 2 1")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = verify_file(TaskConfig(name="sorting"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert summary["num_correct"] == 1 and summary["reasons"] == {"ok": 1, "different": 1}
    (tmp_path / "bad.jsonl").write_text('{"prompt": "3 1 2 =", "digits": "312"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl:1: 'digits' must be a list of integers, found '312'"):
        tasks.load_task(TaskConfig(name="sorting", train=str(tmp_path / "bad.jsonl")))


@pytest.mark.usefixtures("files")
def test_a_function_beside_the_config_is_a_task():
    with VerifierPool(CustomReward("my_module:reward"), num_workers=1) as pool:
        verdicts = pool.score([("1 + 1 =", completion, {"answer": "2", "level": 1}) for completion in (" 2", "3")])
    assert [v.reward for v in verdicts] == [1.0, 0.0]


@pytest.mark.usefixtures("files")
def test_a_reward_may_judge_a_whole_group(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What makes 4?", "answer": "= 4"}\n')
    config = TaskConfig(name="novelty:reward", train="rows.jsonl")
    task = tasks.load_task(config)
    check_reward(task, config)
    (problem,) = task.train
    completions = ["2 + 2 = 4", "3 + 1 = 4", "2 + 2 = 4", "5"]
    with make_pool(task.reward, config) as pool:
        verdicts = pool.score([(problem.prompt, completion, problem.row) for completion in completions])
    assert [v.reward for v in verdicts] == [0.5, 1.0, 0.5, 0.0]
