"""A broken reward is no hostile completion: it is named, it stops the run, and nothing that it started outlives it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import Verdict, VerifierError, VerifierPool
from fastrl.tasks.verify import check_reward

REWARDS = """
import asyncio, ctypes, decimal, fractions, os, pathlib, signal, subprocess, sys, threading, time
import numpy as np

held, lock, pids = [], threading.Lock(), pathlib.Path("pids")

class Local(Exception):
    def __init__(self, a, b): super().__init__(a)

class Mute(BaseException):
    def __str__(self): raise RuntimeError("no text")

class TimeoutException(Exception): pass

class Unpicklable(Exception):
    def __init__(self):
        super().__init__("has", "parts")
        self.lock = lock

def slow(prompt, completion, **row): time.sleep(5)
def segfault(prompt, completion, **row): return ctypes.string_at(0)
def exits(prompt, completion, **row): os._exit(0)
def deadlock(prompt, completion, **row): lock.acquire(); lock.acquire()
def recursion(prompt, completion, **row): return recursion(prompt, completion)
def allocates(prompt, completion, **row): held.append(bytearray(10**12)); return 1.0

def leaks(prompt, completion, **row):
    held.append(bytearray(30 * 2**20))
    return 1.0

def leaks_in_silence(prompt, completion, **row):
    try:
        held.append(bytearray(30 * 2**20))
        return 1.0
    except MemoryError:
        return 0.0

def gets_stuck(prompt, completion, **row):  # a worker's fifth call and every later one hangs
    held.append(1)
    if len(held) > 4: time.sleep(60)
    return 1.0

def slow_at_times(prompt, completion, **row):
    if completion == "slow": time.sleep(60)
    return 1.0

def starts_processes(prompt, completion, **row):
    child = subprocess.Popen(["sleep", "300"])
    daemon = subprocess.Popen(["sleep", "300"], start_new_session=True)
    with pids.open("a") as file: print(child.pid, daemon.pid, file=file)
    if os.fork() == 0:
        with pids.open("a") as file: print(os.getpid(), file=file)
        if os.fork() == 0:
            os.setsid()
            with pids.open("a") as file: print(os.getpid(), file=file)
        time.sleep(300)
    time.sleep(0.1)
    if completion == "hang": time.sleep(300)
    if completion == "segfault": ctypes.string_at(0)
    return 1.0

def comes_back_twice(prompt, completion, **row):
    os.fork()
    return 1.0

def raises(prompt, completion, **row):
    if not completion: return 0.0
    raise {
        "cancelled": asyncio.CancelledError(), "interrupt": KeyboardInterrupt(), "exit": SystemExit(0),
        "generator": GeneratorExit(), "local": Local(1, 2), "mute": Mute(), "timeout": TimeoutException("too slow"),
        "base": BaseException("base"), "lambda": ValueError(lambda: 1), "group": BaseExceptionGroup("g", [Mute()]),
        "surrogate": ValueError("half \\ud83d"), "timeout error": TimeoutError(),
        "lock": Unpicklable(), "system": OSError(),
    }[completion]

class Item:
    def item(self): return 0.25

class Loud:
    def __repr__(self): raise KeyboardInterrupt

def returns(prompt, completion, **row):
    return {
        "np.bool_": np.bool_(True), "np.float16": np.float16(0.5), "0-d": np.array(0.5), "one": np.array([0.5]),
        "item": Item(), "decimal": decimal.Decimal("0.5"), "fraction": fractions.Fraction(1, 2), "bool": True,
        "huge": 10**400, "huge int": 10**5000, "array": np.array([1.0, 2.0]), "text": "1",
        "nan": decimal.Decimal("nan"),
        "complex": 1j, "np.nan": np.float32("nan"), "loud": Loud(), "str array": np.array("x"),
    }[completion]
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    (tmp_path / "odd_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return lambda function, **settings: VerifierPool(CustomReward(f"odd_rewards:{function}"), **settings)


def items(*completions):
    return [("", completion, {}) for completion in completions]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("slow", r"limits on \d+ of 64 .*timeout; task.timeout_s = 0.3, .*raise task.timeout_s"),
        pytest.param("deadlock", r"limits on \d+ of 64 .*timeout", marks=pytest.mark.slow),
        ("segfault", r"limits on \d+ of 64 .*crashed"),
        ("allocates", r"limits on \d+ of 64 .*memory; .*raise task.memory_mb"),
        ("recursion", r"limits on \d+ of 64 .*recursion"),
        ("exits", "exited with status 0 3 times"),
    ],
)
def test_a_reward_that_breaks_on_every_completion_is_an_error(rewards, function, message):
    start = time.monotonic()
    with rewards(function, timeout_s=0.3) as pool, pytest.raises(VerifierError, match=message):
        pool.score(items(*["text"] * 64))
    assert time.monotonic() - start < 30


def test_small_batches_do_not_hide_a_broken_reward(rewards):
    with rewards("slow", timeout_s=0.2) as pool, pytest.raises(VerifierError, match="4 of 4"):
        pool.score(items(*["text"] * 4))
    with rewards("slow_at_times", timeout_s=0.2) as pool, pytest.raises(VerifierError, match="timeout"):
        for _ in range(20):
            pool.score(items("slow", "fine", "fine", "fine"))


def test_a_few_hostile_completions_are_no_fault(rewards):
    completions = ["slow" if i % 50 == 0 else "fine" for i in range(200)]
    with rewards("slow_at_times", timeout_s=0.3) as pool:
        verdicts = pool.score(items(*completions))
    assert [v.reason for v in verdicts] == ["timeout" if c == "slow" else "" for c in completions]
    assert [v.reward for v in verdicts] == [float(c != "slow") for c in completions]


@pytest.mark.parametrize("function", ["leaks", "leaks_in_silence"])
def test_a_worker_that_has_grown_is_replaced(rewards, function):
    with rewards(function, memory_mb=1024, num_workers=1) as pool:
        verdicts = pool.score(items(*["text"] * 100))
        assert verdicts == [Verdict(1.0, "")] * 100
        assert 2 <= pool.num_restarts <= 10 and not pool.num_limits


def test_what_a_used_worker_cannot_settle_a_fresh_one_can(rewards):
    with rewards("gets_stuck", timeout_s=0.3, num_workers=1) as pool:
        assert pool.score(items(*["text"] * 12)) == [Verdict(1.0, "")] * 12
        assert pool.num_limits["timeout"] > 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(path: Path, at_least: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pids = [int(pid) for pid in path.read_text().split()]
        if len(pids) >= at_least and not any(map(alive, pids)):
            return
        time.sleep(0.05)
    raise AssertionError([pid for pid in pids if alive(pid)] or f"only {len(pids)} started")


@pytest.mark.skipif(sys.platform != "linux", reason="daemons are found by Linux's child subreaper")
@pytest.mark.parametrize("completion", ["fine", "hang", "segfault"])
def test_processes_of_a_reward_die_with_its_worker(rewards, completion, tmp_path):
    with rewards("starts_processes", timeout_s=1.0, num_workers=1) as pool:
        pool.score(items(completion))
        if completion != "fine":
            wait_until_gone(tmp_path / "pids", 8)  # of two workers
    wait_until_gone(tmp_path / "pids", 4)


SCRIPT = """
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import VerifierPool

pool = VerifierPool(CustomReward("odd_rewards:starts_processes"), timeout_s=100, num_workers=2)
pool.score([("", "fine", {})] * 2)
print("scored", flush=True)
pool.score([("", "hang", {})] * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="daemons are found by Linux's child subreaper")
def test_nothing_outlives_a_killed_main_process(rewards, tmp_path):
    main = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert main.stdout.readline() == "scored\n"
    time.sleep(0.5)
    main.kill()
    assert main.wait(timeout=10) == -signal.SIGKILL
    start = time.monotonic()
    assert main.stdout.read() == ""  # its end: nobody else holds the pipe
    assert time.monotonic() - start < 5
    wait_until_gone(tmp_path / "pids", 4)


def test_a_forked_child_that_comes_back_is_no_second_worker(rewards):
    with rewards("comes_back_twice", num_workers=1) as pool:
        assert pool.score(items(*["text"] * 20)) == [Verdict(1.0, "")] * 20


def test_whatever_a_reward_raises_is_a_fault_with_its_name(rewards):
    names = {
        "cancelled": "CancelledError", "interrupt": "KeyboardInterrupt", "exit": "SystemExit: 0",
        "generator": "GeneratorExit", "local": "Local: 1", "mute": "Mute", "timeout": "TimeoutException: too slow",
        "timeout error": "TimeoutError", "base": "BaseException: base", "lambda": "ValueError: <function raises",
        "group": "BaseExceptionGroup: g (1 sub-exception)", "surrogate": "ValueError: half \\ud83d",
        "lock": "Unpicklable: ('has', 'parts')", "system": "OSError",
    }  # fmt: skip
    start = time.monotonic()
    with rewards("raises", timeout_s=30.0, num_workers=1) as pool:
        for completion, name in names.items():
            pool.num_faults = 0  # so that they do not end it together
            verdict, harmless = pool.score(items(completion, ""))
            assert verdict.is_fault and verdict.reward is None and verdict.reason.startswith(name), verdict
            assert harmless == Verdict(0.0, "")
        assert pool.num_restarts == 0
    assert time.monotonic() - start < 20  # nothing waited for the limit


def test_a_module_may_raise_anything_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("raise SystemExit('not today')")
    monkeypatch.chdir(tmp_path)
    with VerifierPool(CustomReward("leaves:reward"), num_workers=1) as pool:
        (verdict,) = pool.score(items("text"))
    assert verdict.is_fault and "cannot be loaded: SystemExit: not today" in verdict.reason


def test_a_group_reward_that_can_be_loaded_once_says_why_not_again(tmp_path, monkeypatch):
    """A worker that cannot load it cannot know that it judges groups."""
    source = "import os\ndef reward(prompt, completions, **row):\n    os._exit(7)\n"
    (tmp_path / "once.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with VerifierPool(CustomReward("once:reward"), num_workers=1) as pool:
        assert pool.unit() == "group"
        (tmp_path / "once.py").write_text("raise OSError('the disk has gone')")
        with pytest.raises(VerifierError, match="has started anew, and the reward cannot be loaded: OSError: the disk"):
            pool.score(items("text"))


def test_numbers_of_any_library_are_numbers(rewards):
    good = {"np.bool_": 1.0, "bool": 1.0, "item": 0.25}
    good |= dict.fromkeys(["np.float16", "0-d", "one", "decimal", "fraction"], 0.5)
    bad = ["huge", "huge int", "array", "text", "nan", "complex", "np.nan", "loud", "str array"]
    with rewards("returns", num_workers=1) as pool:
        for completion in [*good, *bad]:
            pool.num_faults = 0
            (verdict,) = pool.score(items(completion))
            assert verdict.reward == good.get(completion) and verdict.is_fault == (completion in bad), completion
            assert completion in good or verdict.reason.startswith(("returned", "KeyboardInterrupt")), verdict


@pytest.mark.slow
def test_torch_scalars_are_numbers(tmp_path, monkeypatch):
    (tmp_path / "torch_reward.py").write_text(
        "import torch\ndef reward(prompt, completion, **row): return torch.tensor(True)\n"
    )
    monkeypatch.chdir(tmp_path)
    with VerifierPool(CustomReward("torch_reward:reward"), memory_mb=16384, num_workers=1) as pool:
        assert pool.score(items("text")) == [Verdict(1.0, "")]


def test_a_reward_that_hangs_is_found_before_training(rewards, tmp_path):
    from fastrl.tasks import load_task

    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    config = TaskConfig(name="odd_rewards:slow", train="rows.jsonl", timeout_s=0.3)
    with pytest.raises(ValueError, match=r"failed on problem .*: timeout \(task.timeout_s = 0.3"):
        check_reward(load_task(config), config)
