"""docs/environments.md followed to the letter: environments of verifiers and OpenEnv, judged, played, trained with."""

import importlib.util
import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from fastrl.cli import main
from fastrl.config.checks import check_train
from fastrl.config.files import load_config
from fastrl.config.schema import TaskConfig, TrainConfig
from fastrl.records.fingerprints import _reward as reward_fingerprint
from fastrl.records.jsonl import read_jsonl
from fastrl.tasks import find_kind, load_task
from fastrl.tasks.bridges.openenv_server import InvalidAction, action_of
from fastrl.tasks.bridges.openenv_tasks import shown
from fastrl.tasks.verifier.pool import VerifierError, VerifierPool
from fastrl.tasks.verifier.worker import Call

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)```", re.DOTALL)
needs_verifiers = pytest.mark.skipif(not importlib.util.find_spec("verifiers"), reason="verifiers is not installed")
needs_openenv = pytest.mark.skipif(not importlib.util.find_spec("openenv"), reason="openenv is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a reader of the page would have."""
    root = tmp_path_factory.mktemp("environments")
    for name, code in BLOCK.findall((ROOT / "docs" / "environments.md").read_text()):
        (root / name).write_text(code)
    (root / "models").symlink_to(ROOT / "models")
    return root


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])


def task_of(name: str, **settings):
    return load_task(TaskConfig(name=name, num_validation=2, num_test=2, **settings))


@needs_verifiers
def test_a_taskset_of_verifiers_is_a_reward(folder):
    task = task_of("verifiers:sums?num_tasks=30")
    assert [len(split) for split in (task.train, task.validation, task.test)] == [24, 2, 2]
    assert [p.prompt for p in task.validation] == ["8+0=", "8+1="] and task.train[3].prompt == "3+0="
    problem = task.train[-1]
    assert problem.prompt == "7+2=" and problem.row == {"task": {"idx": 27, "prompt": "7+2=", "answer": "9"}}
    with VerifierPool(task.reward, num_workers=1) as pool:
        verdicts = pool.score([(problem.prompt, text, problem.row) for text in ("9", " 9 ", "8", "nine")])
    assert [v.reward for v in verdicts] == pytest.approx([1.0, 1.0, 0.1, 0.0])
    assert verdicts[2].reason == "exact 0, is_number 1"


@needs_verifiers
def test_an_environment_of_verifiers_replies_and_can_be_played_again(folder):
    """Secrets are 3, 4, 1, 0, … in the order of the taskset."""
    task = task_of("verifiers:higher", num_train=4, num_workers=1)
    assert [p.row["task"]["secret"] for p in task.train] == [3, 4, 1, 0]
    first, prompt = task.train[0].row, task.train[0].prompt
    texts = [[], ["1"], ["1", "9"], ["1", "9", "3"], ["3"]]
    with VerifierPool(task.reward, num_workers=1) as pool:
        found = pool.play([Call(prompt, said, first, ["+", "-"][: max(len(said) - 1, 0)]) for said in texts])
    assert [(v.reply, v.is_done, v.reward) for v in found] == [
        ("", False, 0.0),
        ("+", False, 0.0),
        ("-", False, 0.0),
        ("", True, 1.0),
        ("", True, 1.0),
    ]


@needs_verifiers
def test_a_resumed_run_compares_the_source_of_the_environment(folder):
    task = TaskConfig(name="verifiers:sums", reward_folder=str(folder))
    before = reward_fingerprint(task.name, task, None)
    path = folder / "sums.py"
    text = path.read_text()
    path.write_text(text.replace("0.9", "0.8"))
    assert (
        before.startswith("fastrl ")
        and ", verifiers 0." in before
        and reward_fingerprint(task.name, task, None) != before
    )
    path.write_text(text)
    assert reward_fingerprint(task.name, task, None) == before


SANDBOXED = """
import verifiers.v1 as vf

class OneTask(vf.Task[vf.TaskData]):
    {method}

class OneTaskset(vf.Taskset[OneTask, vf.TasksetConfig]):
    def load(self):
        yield OneTask(vf.TaskData(prompt="?"), self.config.task)

class Two(vf.EnvConfig):
    a: vf.AgentConfig = vf.AgentConfig()
    b: vf.AgentConfig = vf.AgentConfig()

class TwoEnv(vf.Env[Two]):
    async def run(self, task, agents): pass

__all__ = ["OneTaskset"{more}]
"""


@needs_verifiers
@pytest.mark.parametrize(
    ("name", "method", "more", "message"),
    [
        ("boxed", "NEEDS_CONTAINER = True", "", "needs a container"),
        ("prepared", "async def setup(self, trace, runtime): pass", "", "prepares a runtime"),
        ("run_in", "@vf.reward\n    async def runs(self, trace, runtime): return 1.0", "", r"take a runtime \(runs\)"),
        (
            "stopped",
            "@vf.stop\n    async def ends(self, trace: vf.Trace) -> bool: return True",
            "",
            "stop or intercept",
        ),
        ("paired", "pass", ', "TwoEnv"', "has 2 agents"),
    ],
)
def test_what_needs_more_than_texts_is_refused(folder, name, method, more, message):
    (folder / f"{name}.py").write_text(SANDBOXED.format(method=method, more=more))
    with pytest.raises(ValueError, match=f"task 'verifiers:{name}' .*{message}"):
        find_kind(f"verifiers:{name}")


@needs_verifiers
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verifiers:", "names no taskset"),
        ("verifiers:nowhere", "finds no taskset 'nowhere'"),
        ("verifiers:sums?num=3", "num"),
        ("openenv:lower_env", "expected openenv:<module>:<app>"),
        ("openenv:http://127.0.0.1:1", "no OpenEnv server answers at http://127.0.0.1:1/schema"),
    ],
)
def test_a_name_that_leads_nowhere_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        task_of(name)


@needs_openenv
def test_an_openenv_server_is_played_and_ends_with_its_worker(folder):
    """The secrets of seeds 0, 1 and 2 are 6, 2 and 0."""
    task = task_of("openenv:lower_env:app", num_train=3)
    assert [(p.prompt, p.row["reset"]) for p in task.train] == [("0:9=", {"seed": seed}) for seed in range(3)]
    assert not {p.row["reset"]["seed"] for p in task.train} & {p.row["reset"]["seed"] for p in task.test}
    row, prompt = task.train[0].row, task.train[0].prompt
    with VerifierPool(task.reward, num_workers=1, timeout_s=20) as pool:
        texts = [["1"], ["9"], ["9", "6"], ['{"text": "6"}'], ['{"words": 6}']]
        found = pool.play([Call(prompt, said, row) for said in texts])
        assert [(v.reply, v.is_done, v.reward, v.turns) for v in found[:4]] == [
            ("+", False, 0.0, (0.0,)),
            ("-", False, 0.0, (0.0,)),
            ("=", True, 1.0, (0.0, 1.0)),
            ("=", True, 1.0, (1.0,)),
        ]
        assert (found[4].reason, found[4].is_done, found[4].reward) == ("invalid action", True, 0.0)
        (server,) = servers()
        os.kill(server.pid, 9)
        (again,) = pool.play([Call(prompt, ["9", "6"], row, ["-"])])
        assert again.reward == 1.0 and pool.num_restarts == 1
    deadline = time.monotonic() + 10
    while servers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not servers()


def servers() -> list[psutil.Process]:
    """OpenEnv servers that this process, or what it started, has started."""
    return [p for p in psutil.Process().children(recursive=True) if "lower_env" in " ".join(p.cmdline())]


@needs_openenv
def test_an_environment_without_a_seed_cannot_be_played(folder):
    source = (folder / "lower_env.py").read_text().replace("Random(seed)", "Random()").replace('"0:9="', "self.secret")
    (folder / "restless_env.py").write_text(source)
    task = task_of("openenv:restless_env:app", num_train=3)
    with VerifierPool(task.reward, num_workers=1, timeout_s=20) as pool, pytest.raises(VerifierError) as error:
        for problem in task.train * 20:
            pool.play([Call(problem.prompt, ["1"], problem.row)])
    assert "is not a function of its arguments" in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind", "action"),
    [
        (" 3+4 ", "string", {"move": "3+4"}),
        ("3", "integer", {"move": 3}),
        ('{"move": 3}', "integer", {"move": 3}),
        ('"3"', "string", {"move": '"3"'}),
    ],
)
def test_a_text_becomes_an_action(text, kind, action):
    assert action_of(text, {"required": ["move"], "properties": {"move": {"type": kind}}}) == action


def test_what_is_no_action_is_said():
    with pytest.raises(InvalidAction, match=r"a JSON object with the fields \['a', 'b'\]"):
        action_of("3", {"required": ["a", "b"], "properties": {"a": {}, "b": {}}})
    with pytest.raises(InvalidAction, match="a must be JSON, found 'x'"):
        action_of("x", {"required": ["a"], "properties": {"a": {"type": "integer"}}})


def test_an_observation_is_its_text_or_json():
    assert shown({"text": "higher", "tries": 3}) == "higher"
    assert shown({"text": "higher", "hint": "é", "tries": 3}) == '{"text": "higher", "hint": "é", "tries": 3}'


@needs_verifiers
@needs_openenv
def test_the_first_config_of_the_page_is_sound(folder):
    """It is judged above; the two below train."""
    config = load_config(TrainConfig, folder / "sums.toml")
    check_train(config)
    assert len(load_task(config.task).train) == 160


@needs_verifiers
@needs_openenv
@pytest.mark.parametrize("name", ["higher", "lower"])
def test_the_page_trains(folder, name):
    assert main(["train", f"{name}.toml", "--evaluation.num-samples", "4", "--task.num-workers", "1"]) == 0
    rows = read_jsonl(folder / "runs" / name / "rollouts" / "step-000002.jsonl.gz")
    assert rows and all(row["reward"] is not None for row in rows)
    assert any(re.search(r"<eos>[+-]", row["completion"]) for row in rows), "a reply behind a turn"
    assert not servers()
