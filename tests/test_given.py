"""Rewards given as Python objects: what reaches a worker, what they are called, by what a resumed run knows them."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from letter_model import save_letter_model
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import fastrl
from fastrl.config.schema import TaskConfig
from fastrl.records.callables import content, module_of
from fastrl.tasks import find_kind, load_task
from fastrl.tasks.given import GivenReward, with_given
from fastrl.tasks.verifier.pool import VerifierPool
from fastrl.tasks.verifier.worker import Call

PACKAGES = Path(fastrl.__file__).parent.parent
BONUS = 0.25


def closed_over(offset):
    def reward(prompt, completion, **row):
        return len(completion) + offset + BONUS

    return reward


def scored(reward, *texts):
    with VerifierPool(GivenReward("python:it", reward), num_workers=1) as pool:
        return [verdict.reward for verdict in pool.score([("p", text, {}) for text in texts])]


def test_closures_lambdas_and_partials_run_in_a_worker():
    assert scored(closed_over(1), "abc", "") == [4.25, 1.25]
    assert scored(lambda prompt, completion, **row: float(os.getpid() != PID), "a") == [1.0]
    assert scored(partial(lambda bonus, prompt, completion, **row: bonus, 3), "a") == [3.0]


@pytest.mark.parametrize("weight", ["1", None, True, [1.0]])
def test_a_weight_is_a_number(weight):
    with pytest.raises(ValueError, match=r"reward python:closed_over has the weight .*: expected a number"):
        with_given(TaskConfig(), {closed_over: weight})


PID = os.getpid()


def test_an_environment_class_is_made_in_the_worker():
    class Echo:
        def reset(self, prompt, **row):
            self.turns = []

        def step(self, text):
            self.turns.append(text)
            return text, len(self.turns) == 2

        def score(self):
            return float(len(self.turns))

    with VerifierPool(GivenReward("python:Echo", Echo), num_workers=1) as pool:
        first, second = pool.play([Call("p", ["a"], {}), Call("p", ["a", "b"], {}, ["a"])])
    assert (first.reply, first.is_done, first.reward) == ("a", False, 1.0)
    assert (second.is_done, second.reward) == (True, 2.0)


def test_names_and_weights_go_into_the_config():
    f, g = closed_over(1), closed_over(2)
    task = TaskConfig(rewards={"style:brevity": 0.1, "python:old": 3.0})
    config, given = with_given(task, [f, g, Path])
    assert config.name == "python:reward" and list(given) == ["python:reward", "python:reward-2", "python:Path"]
    assert config.rewards == {"style:brevity": 0.1, "python:reward-2": 1.0, "python:Path": 1.0}
    config, _ = with_given(replace(task, name="python:reward"), {f: 2.0, g: 0})
    assert config.rewards == {"verifier": 2.0, "style:brevity": 0.1, "python:reward-2": 0.0}
    assert with_given(task, None) == (task, {})


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (TaskConfig(name="math"), closed_over(1), "task.name = 'math' brings a reward, and another was given"),
        (TaskConfig(), [], "reward is empty"),
        (TaskConfig(), "exact", "reward 'exact': expected a function"),
        (TaskConfig(), closed_over(threading.Lock()), "python:reward cannot be sent to the verifier's workers"),
    ],
)
def test_what_is_no_reward_is_an_error(task, given, message):
    with pytest.raises(ValueError, match=message):
        with_given(task, given)


def test_a_name_without_its_object_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"'python:exact' is a Python object .* train\(config, resume=True, reward=exact"
    ):
        find_kind("python:exact")
    with pytest.raises(ValueError, match="set train to a JSON-lines file"):
        config, given = with_given(TaskConfig(), closed_over(1))
        load_task(config, given=given)


def test_the_content_changes_with_source_cells_globals_and_defaults(monkeypatch):
    def texts(given):
        return list(content(given))

    assert texts(closed_over(1)) == texts(closed_over(1)) != texts(closed_over(2))
    before = texts(closed_over(1))
    monkeypatch.setattr(sys.modules[__name__], "BONUS", 0.5)
    assert texts(closed_over(1)) != before
    assert texts(partial(closed_over(1), bonus=1)) != texts(partial(closed_over(1), bonus=2))
    typed: list[dict] = [{}, {}, {}]
    for scope, number in zip(typed, (1, 1, 2), strict=True):  # no source: as typed at a prompt
        exec(f"def f(prompt, completion, **row): return {number} + (lambda: {number})()", scope)
    assert texts(typed[0]["f"]) == texts(typed[1]["f"]) != texts(typed[2]["f"])
    assert module_of(Path) == "pathlib" and module_of(closed_over(1)) == ""


REWARDS = """
BONUS = 0.5

def exact(prompt, completion, *, answer, **row):
    return float(completion.strip() == answer) + BONUS

def short(prompt, completion, **row):
    return -float(len(completion))
"""
RUN = """
from fastrl import TrainConfig, train
from fastrl.config.schema import *

def run(num_steps, *rewards, **options):
    config = TrainConfig(
        model=ModelConfig(path="model", device="cpu"),
        task=TaskConfig(train="rows.jsonl", num_workers=1),
        sampler=SamplerConfig(max_new_tokens=6),
        algorithm=AlgorithmConfig(objective="rloo"),
        batch=BatchConfig(prompts_per_step=2, rollouts_per_prompt=4),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder="run", num_steps=num_steps, checkpoint_every=1, sinks=()),
    )
    try:
        train(config, reward=dict(rewards) or None, **options)
    except ValueError as error:
        print(f"refused: {error}")
"""
SCRIPT = """
import sys

if sys.argv[1] == "start":
    run(1, (exact, 1.0), (short, 0.1))
else:
    run(2, resume=True)
    run(2, (exact, 1.0), resume=True)
    run(2, (exact, 1.0), (short, 0.1), resume=True)
    BONUS = 0.75
    run(3, (exact, 1.0), (short, 0.1), resume=True)
"""
ENVIRONMENT = {"PYTHONPATH": str(PACKAGES), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}


@pytest.fixture
def sums(tmp_path) -> Path:
    """A folder with a model of letters and rows."""
    save_letter_model(tmp_path / "model", "0123456789+= ")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    return tmp_path


def run_script(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "script.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_script_trains_with_its_own_functions_and_resumes_with_the_same_ones_only(sums):
    (sums / "script.py").write_text(REWARDS + RUN + SCRIPT)
    run_script(sums, "start")
    text = (sums / "run/config.toml").read_text()
    assert 'name = "python:exact"' in text and '"python:short" = 0.1' in text
    said = run_script(sums, "resume")
    refused = re.findall("refused: (.*)", said)
    assert len(refused) == 3 and said.count("step 2/2") == 1
    assert "task.name is 'python:exact' there, 'countdown' here" in refused[0]
    assert "task.rewards is {'python:short': 0.1} there, {} here" in refused[1]
    assert "made with other inputs: the reward (python:exact, " in refused[2] and "short" not in refused[2]


def test_a_notebook_trains_with_functions_of_its_cells(sums):
    """A real kernel; a cell that is run again with the same text is the same reward, with another one it is not."""
    cells = [
        RUN,
        REWARDS,
        "run(1, (exact, 1.0))",
        REWARDS,
        "run(2, (exact, 1.0), resume=True)",
        REWARDS.replace("0.5", "0.75"),
        "run(3, (exact, 1.0), resume=True)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(sums)}})
    client.execute(env=ENVIRONMENT)
    first, second, third = ["".join(o.get("text", "") for o in notebook.cells[i].outputs) for i in (2, 4, 6)]
    assert "step 1/1" in first and "step 2/2" in second and "refused" not in first + second
    assert "made with other inputs: the reward (python:exact, " in third
