"""The verifier pool: exact blame, order, limits, and no hang whatever happens to a worker."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastrl.tasks import countdown
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.math import MathReward
from fastrl.tasks.problem import Score
from fastrl.tasks.verifier import batch
from fastrl.tasks.verifier import pool as pool_module
from fastrl.tasks.verifier.pool import Verdict, VerifierError, VerifierPool

REWARD_MODULE = """
import ctypes, os, signal, sys, time

def descend(n):
    return descend(n + 1)

def reward(prompt, completion, *, value=1.0, **row):
    if completion == "hang":
        while True:
            pass
    if completion == "hang in C":
        return float(len(str(9 ** 9 ** 9)))
    if completion == "hang deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass
    if completion == "memory":
        return float(len(bytearray(10**12)))
    if completion == "recursion":
        return descend(0)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "abort":
        os.abort()
    if completion == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "exit":
        os._exit(3)
    if completion == "sys.exit":
        sys.exit("done")
    if completion == "raise":
        raise KeyError("gold answer missing")
    if completion == "slow":
        time.sleep(0.01)
    return {"none": None, "nan": float("nan"), "inf": float("inf"), "text": "1.0"}.get(completion, value)
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    (tmp_path / "hostile_reward.py").write_text(REWARD_MODULE)
    monkeypatch.chdir(tmp_path)
    return CustomReward("hostile_reward:reward")


def worker_pids(pool):
    return sorted(w.pid for w in pool._workers if w.pid)


def score(pool, completions):
    """Scores completions whose value, if they are harmless, is their position."""
    return pool.score([("", completion, {"value": float(i)}) for i, completion in enumerate(completions)])


def test_each_completion_gets_its_own_verdict_in_order(hostile):
    guilty = {
        3: ("hang", "timeout"),
        4: ("hang in C", "timeout"),
        40: ("hang deaf", "timeout"),
        90: ("memory", "memory"),
        91: ("recursion", "recursion"),
        150: ("segfault", "crashed"),
        151: ("abort", "crashed"),
        200: ("x" * (batch.MAX_BYTES + 1), "too long"),
        201: ("é" * (batch.MAX_BYTES // 2 + 1), "too long"),
        202: ("half an emoji \ud83d", "invalid unicode"),
    }
    completions = ["fine\0" if i % 2 else "" for i in range(300)]
    for position, (completion, _) in guilty.items():
        completions[position] = completion
    with VerifierPool(hostile, timeout_s=1.0, num_workers=2) as pool:
        verdicts = score(pool, completions)
    expected = [Verdict(0.0, guilty[i][1]) if i in guilty else Verdict(float(i), "") for i in range(300)]
    assert verdicts == expected
    assert pool.num_calls == 300 and pool.num_faults == 0


def test_a_few_hostile_completions_are_no_fault_of_the_verifier(hostile):
    with VerifierPool(hostile, timeout_s=0.3, num_workers=2) as pool:
        verdicts = score(pool, ["hang", "fine", "segfault", "fine", "memory", "fine", "hang in C"])
        assert [v.reason for v in verdicts] == ["timeout", "", "crashed", "", "memory", "", "timeout"]
        assert pool.score([("", "hang", {})]) == [Verdict(0.0, "timeout")]  # nothing beside it to tell from


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("raise", "KeyError: 'gold answer missing'"),
        ("none", "returned None (NoneType)"),
        ("nan", "returned nan (float)"),
        ("inf", "returned inf (float)"),
        ("text", "returned '1.0' (str)"),
        ("sys.exit", "SystemExit: done"),
        ("exit", "exited with status 3"),
        ("kill", "killed by signal 9"),
    ],
)
def test_a_verifier_that_breaks_by_itself_gives_no_reward(hostile, completion, reason):
    with VerifierPool(hostile, timeout_s=5.0, num_workers=1) as pool:
        verdicts = score(pool, ["fine", completion, "fine"])
    assert [v.reward for v in verdicts] == [0.0, None, 2.0]
    assert [v.is_fault for v in verdicts] == [False, True, False]
    assert reason in verdicts[1].reason
    assert pool.num_faults == 1


def test_more_than_one_percent_of_faults_is_an_error(hostile):
    completions = ["fine"] * 1000
    for i in range(0, 1000, 100):
        completions[i] = "raise"
    with VerifierPool(hostile, num_workers=1) as pool:
        assert sum(v.is_fault for v in score(pool, completions)) == 10  # 10 of 1000 are not more than 1 %
        with pytest.raises(VerifierError, match=r"11 of 1001.*gold answer missing"):
            score(pool, ["raise"])


def test_a_reward_that_cannot_be_imported_is_an_error_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VerifierPool(CustomReward("no_such_module:reward"), num_workers=1) as pool:
        (verdict,) = pool.score([("", "text", {})])
        assert verdict.is_fault and "No module named 'no_such_module'" in verdict.reason
        with pytest.raises(VerifierError, match="no_such_module"):
            score(pool, ["text"] * 64)


def test_a_worker_killed_from_outside_while_scoring_costs_nothing(hostile):
    with VerifierPool(hostile, num_workers=2) as pool:
        score(pool, ["fine"] * 10)
        is_done = threading.Event()
        num_killed = 0

        def kill_repeatedly():
            nonlocal num_killed
            while not is_done.wait(0.3):
                for pid in worker_pids(pool)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    num_killed += 1

        killer = threading.Thread(target=kill_repeatedly)
        killer.start()
        try:
            verdicts = score(pool, ["slow"] * 400)
        finally:
            is_done.set()
            killer.join()
    assert num_killed >= 3
    assert verdicts == [Verdict(float(i), "") for i in range(400)]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_workers_killed_between_batches_are_replaced(hostile, by):
    with VerifierPool(hostile, num_workers=2) as pool:
        score(pool, ["fine"] * 10)
        for pid in worker_pids(pool):
            os.kill(pid, by)
        time.sleep(0.5)
        assert score(pool, ["fine"] * 10) == [Verdict(float(i), "") for i in range(10)]


def test_stopped_workers_are_replaced(hostile):
    with VerifierPool(hostile, timeout_s=1.0, num_workers=2) as pool:
        score(pool, ["fine"] * 10)
        stopped = worker_pids(pool)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert score(pool, ["fine"] * 10) == [Verdict(float(i), "") for i in range(10)]
        assert pool.num_restarts >= 1 and not set(stopped) & set(worker_pids(pool))


@pytest.mark.parametrize("at_import", ["import os; os._exit(1)", "import time; time.sleep(60)"])
def test_workers_that_cannot_start_are_an_error(tmp_path, monkeypatch, at_import):
    monkeypatch.setattr(pool_module, "START_GRACE_S", 0.5)
    (tmp_path / "never_ready.py").write_text(at_import)
    monkeypatch.chdir(tmp_path)
    with (
        VerifierPool(CustomReward("never_ready:reward"), timeout_s=0.5, num_workers=1) as pool,
        pytest.raises(VerifierError, match="can they start at all"),
    ):
        score(pool, ["fine"])


def test_ctrl_c_is_the_trainers_alone(hostile):
    with VerifierPool(hostile, num_workers=2) as pool:
        score(pool, ["fine"] * 10)  # one worker is ready, the other may still be starting
        before = worker_pids(pool)
        for pid in before:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        score(pool, ["fine"] * 10)
        assert set(before) <= set(worker_pids(pool))
        assert pool.num_restarts == 0


def test_closing_ends_a_worker_inside_c_code(hostile):
    pool = VerifierPool(hostile, timeout_s=600.0, num_workers=1)
    errors = []

    def score_until_closed():
        with pytest.raises(VerifierError, match="closed") as caught:
            score(pool, ["hang in C"])
        errors.append(caught.value)

    scoring = threading.Thread(target=score_until_closed, daemon=True)
    scoring.start()
    time.sleep(1.0)
    pids = worker_pids(pool)
    assert pids
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    scoring.join(timeout=20)
    assert errors


def test_hostile_answers_do_not_stop_the_math_verifier():
    hostile_answers = [
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        "9^9^9^9",
        "(9^9)^{(9^9)}",
        "10^{1000000000}",
        "(((10!)!)!)!",
        "123456789!",
        "\\binom{10^9}{5\\cdot10^8}",
        "\\sum_{n=1}^{10^{12}} n",
        "(" * 10_000 + "1" + ")" * 10_000,
        "{" * 10_000 + "1" + "}" * 10_000,
        "\\frac{" * 200 + "1" + "}{2}" * 200,
        "\\sqrt{" * 100 + "x" + "}" * 100,
        "1" * 1500,
        "x^" * 700,
        "1,2," * 400,
        "x" * 900_000,
        "\0\0",
        "\\" * 1999,
        "__import__('os').system('true')",
    ]
    completions = [f"The answer is \\boxed{{{answer}}}." for answer in hostile_answers]
    completions += ["\\boxed{" * 100_000, "", " ", "\0", "\ud800", "\\boxed{7}"]
    start = time.monotonic()
    with VerifierPool(MathReward(), timeout_s=2.0, num_workers=2) as pool:
        verdicts = pool.score([("", completion, {"answer": "7"}) for completion in completions])
    assert [v.reward for v in verdicts] == [0.0] * (len(completions) - 1) + [1.0]
    assert all(v.reason for v in verdicts) and pool.num_faults == 0
    assert time.monotonic() - start < 30


def test_the_reason_of_a_score_is_kept():
    with VerifierPool(countdown.reward, num_workers=1) as pool:
        verdicts = pool.score(
            [("", text, {"numbers": [1, 2, 3, 4], "target": 24}) for text in ("1*2*3*4", "1*2*3", "4*3*2/1")]
        )
    assert verdicts == [Verdict(1.0, "ok"), Verdict(0.0, "numbers"), Verdict(0.0, "syntax")]


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="must be positive"):
        VerifierPool(countdown.reward, timeout_s=0.0)


def test_verdicts_and_scores_survive_pickling():
    for value in (Verdict(None, "no", is_fault=True), Score(1.0, "ok"), MathReward(), CustomReward("a:b")):
        assert type(pickle.loads(pickle.dumps(value))) is type(value)


SPY = """
import sys
from fastrl.tasks.math import MathReward
from fastrl.tasks.problem import Score

def reward(prompt, completion, **row):
    judge = MathReward()
    judge.prepare()
    assert judge(prompt, completion, **row).reward == 1.0
    names = {name.partition(".")[0] for name in sys.modules}
    return Score(1.0, str(sorted(names & {"torch", "transformers", "mpmath", "train_me"})))
"""
SCRIPT = """
import sys
import torch
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import VerifierPool

print("the script runs")
with VerifierPool(CustomReward("spy:reward"), num_workers=1) as pool:
    (verdict,) = pool.score([("", r"\\boxed{\\frac{2}{4}+x}", {"answer": r"x+\\frac12"})])
    print("in the worker:", verdict.reason)
print("in the trainer:", "mpmath" in sys.modules)
"""


def test_workers_import_neither_torch_nor_the_main_script(tmp_path):
    """A script without an `if __name__ == "__main__"` guard, which imports torch at its top."""
    (tmp_path / "spy.py").write_text(SPY)
    script = tmp_path / "train_me.py"
    script.write_text(SCRIPT)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "the script runs",
        "in the worker: ['mpmath']",
        "in the trainer: False",
    ]


def test_a_background_thread_scores_block_after_block_while_the_main_one_works(hostile):
    blocks = [[f"block {i}"] * 20 + ["hang", "segfault", "kill"][i : i + 1] for i in range(4)]
    with VerifierPool(hostile, timeout_s=0.3, num_workers=2) as pool, ThreadPoolExecutor(1) as background:
        futures = [background.submit(score, pool, block) for block in blocks]
        while not futures[-1].done():
            sum(range(10_000))  # holds Python's lock, as sampling does
        found = [future.result() for future in futures]
        harmless = [Verdict(float(i), "") for i in range(20)]
        assert [verdicts[:20] for verdicts in found] == [harmless] * 4
        assert [v.reason for verdicts in found for v in verdicts[20:]][:2] == ["timeout", "crashed"]
        assert score(pool, ["fine"]) == [Verdict(0.0, "")]  # and the main thread may go on with it


def test_threads_take_turns(hostile):
    with VerifierPool(hostile, num_workers=2) as pool, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda base: pool.score([("", "", {"value": base + i}) for i in range(50)]), range(8)))
    assert [[v.reward for v in verdicts] for verdicts in found] == [[base + i for i in range(50)] for base in range(8)]
    assert pool.num_calls == 400


def test_no_worker_starts_while_the_pool_closes(hostile, monkeypatch):
    """The main thread closes the pool just when the scoring thread puts a new worker in a dead one's place."""
    started, starting = [], threading.Event()

    class SlowStart(pool_module.WorkerProcess):
        def __init__(self, *args):
            if started:
                starting.set()
                time.sleep(0.5)
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr(pool_module, "WorkerProcess", SlowStart)
    pool = VerifierPool(hostile, timeout_s=600.0, num_workers=1)
    score(pool, ["fine"])
    with ThreadPoolExecutor(1) as background, pool:
        scoring = background.submit(score, pool, ["hang in C"])
        os.kill(pool._workers[0].pid, signal.SIGKILL)
        assert starting.wait(20)
        pool.close()
        with pytest.raises(VerifierError, match="closed"):
            scoring.result(5)
    assert len(started) == 2 and all(worker._keeper.poll() is not None for worker in started)


INTERRUPTED = """
import os, signal, threading, time
from concurrent.futures import ThreadPoolExecutor
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import VerifierError, VerifierPool

with ThreadPoolExecutor(1) as background, VerifierPool(CustomReward("hostile_reward:reward"), timeout_s=600) as pool:
    scoring = background.submit(pool.score, [("", "fine", {}), ("", "hang in C", {})])
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted, the score runs:", scoring.running(), [w.pid for w in pool._workers], flush=True)
print(type(scoring.exception()).__name__, scoring.exception(), flush=True)
"""


def test_ctrl_c_in_the_main_thread_ends_a_score_of_another(hostile, tmp_path):
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    first, second = result.stdout.splitlines()
    assert first.startswith("interrupted, the score runs: True") and second.startswith("VerifierError"), result.stderr
    assert "closed" in second and time.monotonic() - start < 20
    for pid in map(int, re.findall(r"\d+", first)):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
