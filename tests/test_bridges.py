"""docs/environments.md followed to the letter: environments of verifiers and OpenEnv, judged, played, trained with."""

import asyncio
import importlib.util
import os
import re
import socketserver
import sys
import threading
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


def changed(folder: Path, name: str, *pairs: tuple[str, str]) -> None:
    """A module of this name: the page's `higher` with other texts."""
    source = (folder / "higher.py").read_text()
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    (folder / f"{name}.py").write_text(source)


BODY = (ROOT / "docs" / "environments.md").read_text().partition("        secret = str(task.data.secret)\n")[2]
BODY = BODY.partition("\n\n\n__all__")[0]
UNPROMPTED = ('prompt="0:9=", ', "")


@needs_verifiers
def test_an_environment_that_does_not_look_for_the_end_is_played(folder):
    """It asks three times whatever it is told; verifiers' own interaction says `terminated` each time, too."""
    changed(folder, "stubborn", (BODY, """
        async with agents.player.interaction(task) as interaction:
            await interaction.turn()
            for number in range(3):
                await interaction.turn(str(number))
"""))  # fmt: skip
    task = task_of("verifiers:stubborn", num_train=1)
    with VerifierPool(task.reward, num_workers=1, timeout_s=20) as pool:
        calls = [Call("0:9=", said, task.train[0].row) for said in (["3"], ["1", "3"], ["3", "1", "1", "1"])]
        found = pool.play(calls)
    assert [(v.reply, v.is_done, v.reward) for v in found] == [("0", False, 1.0), ("1", False, 1.0), ("", True, 0.0)]


@needs_verifiers
def test_all_traces_of_an_environment_are_added_up(folder):
    """The agent runs twice; the secret is 3."""
    changed(folder, "again", (BODY, """
        for _ in range(2):
            await agents.player.run(task)
"""))  # fmt: skip
    task = task_of("verifiers:again", num_train=1)
    with VerifierPool(task.reward, num_workers=1) as pool:
        calls = [Call("0:9=", said, task.train[0].row) for said in (["3", "3"], ["3", "1"], ["1", "3"], ["1", "1"])]
        found = pool.play(calls)
    assert [v.reward for v in found] == [2.0, 1.0, 1.0, 0.0] and found[1].reason == "is_found 1, is_found 0"


@needs_verifiers
def test_an_environment_may_speak_first_also_in_a_notebook(folder):
    """A cell runs inside of an event loop."""

    async def cell():
        return task_of("verifiers:opening", num_train=1).train[0].prompt

    changed(folder, "opening", UNPROMPTED, ("await interaction.turn()", 'await interaction.turn("guess")'))
    assert asyncio.run(cell()) == "guess"
    changed(folder, "failing", UNPROMPTED, ("await interaction.turn()", 'await interaction.turn({}["x"])'))
    with pytest.raises(ValueError, match="fails before the model's first turn: KeyError: 'x'"):
        task_of("verifiers:failing", num_train=1)
    changed(folder, "silent", UNPROMPTED)
    with pytest.raises(ValueError, match="says nothing before the model's first turn"):
        task_of("verifiers:silent", num_train=1)


@needs_verifiers
def test_what_an_environment_has_started_ends_with_its_conversation(folder):
    changed(
        folder,
        "leaving",
        ("import verifiers.v1 as vf", "import asyncio\nimport verifiers.v1 as vf\nTASKS = []"),
        (
            "        secret = str",
            "        TASKS.append(asyncio.create_task(asyncio.sleep(1000)))\n        secret = str",
        ),
    )
    task = task_of("verifiers:leaving", num_train=1)
    game = task.reward
    for _ in range(2):
        game.reset("0:9=", **task.train[0].row)
        game.step("1")
    tasks = sys.modules["leaving"].TASKS
    assert [one.done() for one in tasks] == [True, False]
    game._play.close()
    assert tasks[1].cancelled()


@needs_verifiers
def test_a_taskset_by_its_name_on_the_hub_is_the_module_of_its_last_part(folder):
    """So a resumed run sees that it has changed."""
    kind = find_kind("verifiers:somebody/Sums@1.0?num_tasks=20")
    assert kind.module == "sums" and kind.reward.source.folder == str(folder)
    task = TaskConfig(name="verifiers:somebody/sums", reward_folder=str(folder))
    assert reward_fingerprint(task.name, task, None) == reward_fingerprint("verifiers:sums", task, None)


@needs_verifiers
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verifiers:", "names no taskset"),
        ("verifiers:nowhere", "finds no taskset 'nowhere'"),
        ("verifiers:sums?num=3", "num"),
        ("verifiers:sums?num_tasks", "task 'verifiers:sums.num_tasks': bad query field: 'num_tasks'"),
        ("verifiers:sums?id=higher", "says twice what 'id' is"),
        ("verifiers:sums?num_tasks=3&num_tasks=4", "says twice what 'num_tasks' is"),
        ("verifiers:sums?num_tasks=0", "task 'verifiers:sums.num_tasks=0' has no problem to train on"),
        ("verifiers:unread", "task 'verifiers:unread' cannot be loaded: SyntaxError"),
        ("verifiers:unfinished", "task 'verifiers:unfinished' cannot be loaded: KeyError: 'x'"),
        ("openenv:lower_env", "expected openenv:<module>:<app>"),
        ("openenv:http://127.0.0.1:1", "no OpenEnv server answers at http://127.0.0.1:1/schema"),
        ("openenv:no_such_env:app", "the process that should serve no_such_env:app has ended, see above"),
    ],
)
def test_a_name_that_leads_nowhere_is_said(folder, name, message):
    (folder / "unread.py").write_text("def (\n")
    changed(folder, "unfinished", ("secret = 0\n", 'secret = {}["x"]\n'))
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


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH", "no OpenEnv server answers at .*/schema: SSH"),
        (b"[]", "tells of no 'action', but "),
        (b'{"x": 1}', "tells of no 'action', but {'x': 1}"),
        (b'{"action": {}}', "no OpenEnv session at ws://.*/ws: .*HTTP"),
    ],
)
@needs_openenv
def test_a_server_of_something_else_is_one_message(answer, message):
    if not answer.startswith(b"SSH"):
        answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer)

    class Other(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(4096)
            self.request.sendall(answer + b"\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match=message):
            task_of(f"openenv:http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


BOARD = """
from pydantic import field_validator


class Move(Action):
    move: int

    @field_validator("move")
    @classmethod
    def on_the_board(cls, move):
        if move > 8:
            raise ValueError("off the board")
        return move


class BoardEnvironment(LowerEnvironment):
    def step(self, action, timeout_s=None, **kwargs):
        if action.move == 8:
            import os
            os._exit(1)
        return Hint(text="on", reward=1.0)


app = create_fastapi_app(BoardEnvironment, Move, Hint)
"""
HOSTILE = ["9" * 5000, "[" * 3000, '{"move":' * 3000, '{"move": 1, "x": "\\ud800"}', "1e999", "NaN", "9", "x", ""]


@needs_openenv
def test_whatever_the_model_writes_is_its_own_doing_and_a_dying_server_says_so(folder, monkeypatch, capfd):
    """A proxy of the environment leads to no server of this machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (folder / "board_env.py").write_text((folder / "lower_env.py").read_text() + BOARD)
    task = task_of("openenv:board_env:app", num_train=1)
    row = task.train[0].row
    with VerifierPool(task.reward, num_workers=1, timeout_s=20) as pool:
        found = pool.play([Call("0:9=", ["1", text], row) for text in HOSTILE])
        assert [(v.reason, v.is_done, v.reward) for v in found] == [("invalid action", True, 1.0)] * len(HOSTILE)
        assert pool.num_restarts == 0
        (dead,) = pool.play([Call("0:9=", ["8"], row)])
    assert dead.is_fault and "exited with status 3" in dead.reason
    said = "verifier worker: openenv:board_env:app: ConnectionError: the OpenEnv server has closed the session"
    assert said in capfd.readouterr().err


@needs_openenv
def test_a_server_that_hangs_is_left_soon(folder, monkeypatch):
    monkeypatch.setattr("fastrl.tasks.bridges.openenv_server.REPLY_S", 1.0)
    monkeypatch.setattr("fastrl.tasks.bridges.openenv_server.CLOSE_S", 1.0)
    source = (folder / "lower_env.py").read_text()
    (folder / "slow_env.py").write_text(source.replace("return Hint(text=", "import time; time.sleep(60)\n        #"))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"openenv:slow_env:app cannot be reset: timed out in 1\.0s"):
        task_of("openenv:slow_env:app", num_train=1)
    assert time.monotonic() - start < 30


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
