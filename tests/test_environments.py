"""Environments in their workers: what they answer, and what hangs, dies, raises or talks rubbish, by its name."""

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import load_task
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.pool import VerifierError, VerifierPool
from fastrl.tasks.verifier.replay import MAX_REPLY
from fastrl.tasks.verifier.worker import Call
from fastrl.tasks.verify import check_reward, verify_file

ENVIRONMENTS = """
import ctypes, os, random, time
import numpy as np
from fastrl.tasks import Score
held = []

class Counting:
    def reset(self, prompt, **row): self.turns, self.at_score = [], None
    def step(self, text):
        self.turns.append(text)
        if text == "hang": time.sleep(60)
        if text == "exit": os._exit(3)
        if text == "segfault": ctypes.string_at(0)
        if text == "raise": raise KeyError("no such move")
        if text == "memory": held.append(bytearray(10**12))
        if text == "recursion": return self.step(text)
        if text == "number": return 3
        if text == "three": return "a", False, 1.0
        if text == "no text": return 3, False
        if text == "no bool": return "a", "no"
        if text == "random": return str(random.random()), False
        if text == "ends at times": return "a", len(self.turns) < 3 and bool(held)
        if text == "long": return "x" * 1_000_000, False
        if text == "half": return "a\\ud83d", False
        if text == "numpy": return "a", np.bool_(True)
        return f"{len(self.turns)} {text}", text == "done"
    def score(self):
        if "nan" in self.turns: return float("nan")
        worths = {"worths": (0.5, -1), "one": (0.5,), "inf": (0.5, float("inf"))}
        if self.turns and self.turns[-1] in worths: return Score(1.0, "ok", None, worths[self.turns[-1]])
        if "bad score" in self.turns: raise ZeroDivisionError("no turns")
        return len(self.turns) / 2

class Restless:
    def __init__(self): self.count = 0
    def reset(self, prompt, **row): pass
    def step(self, text): self.count += 1; return str(self.count), False
    def score(self): return 0.0

class Broken:
    def __init__(self): raise RuntimeError("no world")
    def reset(self, prompt): pass
    def step(self, text): pass
    def score(self): pass

class Mute(Counting):
    def step(self, text): return None
"""


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "odd.py").write_text(ENVIRONMENTS)
    return lambda name="Counting", **settings: VerifierPool(
        CustomReward(f"odd:{name}", str(tmp_path)), **{"num_workers": 1, "timeout_s": 0.3} | settings
    )


def call(*texts: str, replies: tuple[str, ...] = ()) -> Call:
    return Call("p", list(texts), {}, replies)


def test_each_turn_gets_a_reply_and_the_reward_so_far(pool):
    with pool(num_workers=2) as workers:
        assert workers.unit() == "conversation"
        found = workers.play([call(), call("a"), call("a", "b", replies=("1 a",)), call("a", "done"), call("numpy")])
    assert [(v.reply, v.is_done, v.reward, v.is_fault) for v in found] == [
        ("", False, 0.0, False),
        ("1 a", False, 0.5, False),
        ("2 b", False, 1.0, False),
        ("2 done", True, 1.0, False),
        ("a", True, 0.5, False),
    ]


def test_a_score_may_say_what_each_turn_is_worth(pool):
    with pool() as workers:
        found, silent = workers.play([call("a", "worths"), call("a", "b")])
    assert (found.reward, found.turns, silent.turns) == (1.0, (0.5, -1.0), ())


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("hang",), "timeout"),
        (("segfault",), "crashed"),
        (("memory",), "memory"),
        (("recursion",), "recursion"),
        (("exit",), "the worker exited with status 3 3 times on this conversation"),
        (("raise",), "KeyError: 'no such move'"),
        (("number",), "step returned 3 (int); expected (reply, is_done)"),
        (("three",), "step returned ('a', False, 1.0) (tuple); expected (reply, is_done)"),
        (("no text",), "step returned (3, False)"),
        (("no bool",), "step returned ('a', 'no')"),
        (("nan",), "score returned nan (float); expected a finite number"),
        (("bad score",), "ZeroDivisionError: no turns"),
        (("a", "one"), "score gave turns = (0.5,) (tuple); expected a finite number for each of 2 turns"),
        (("a", "inf"), "score gave turns = (0.5, inf) (tuple); expected a finite number for each of 2 turns"),
    ],
)
def test_what_an_environment_does_wrong_is_a_fault_with_its_name(pool, texts, reason):
    """No reward at all, and the conversations beside it go on."""
    with pool() as workers:
        before, bad, after = workers.play([call("a"), call(*texts), call("b")])
        assert bad.is_fault and bad.reward is None and reason in bad.reason
        assert (before.reply, after.reply) == ("1 a", "1 b") and workers.num_faults + workers.num_limits.total() == 1


def test_a_conversation_that_goes_another_way_when_played_again_is_a_fault(pool):
    with pool("Restless") as workers:
        (first,) = workers.play([call("a")])
        (again,) = workers.play([call("a", "b", replies=(first.reply,))])
    assert again.is_fault and "reply 1 was '1' (str) and is '2' (str) when" in again.reason
    with pool() as workers:
        (ended,) = workers.play([call("done", "b", replies=("1 done",))])
    assert ended.is_fault and "and is the end when" in ended.reason


def test_a_worker_that_dies_takes_no_conversation_with_it(pool):
    """Each is played again from its beginning elsewhere."""
    with pool() as workers:
        first, _ = workers.play([call("a"), call("exit")])
        assert workers.num_restarts >= 3
        (second,) = workers.play([call("a", "b", replies=(first.reply,))])
    assert (second.reply, second.reward) == ("2 b", 1.0)


def test_replies_are_bounded_and_can_be_written(pool):
    with pool() as workers:
        long, half = workers.play([call("long"), call("half")])
    assert long.reply == "x" * MAX_REPLY and half.reply == "a\\ud83d"


def test_an_environment_that_always_fails_stops_the_run(pool):
    with pool() as workers, pytest.raises(VerifierError, match="failed on 3 of 3 conversations"):
        workers.play([call("raise")] * 3)
    with pool() as workers, pytest.raises(VerifierError, match=r"limits on 2 of 2 conversations \(2 timeout"):
        workers.play([call("hang")] * 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mute", "the environment of task 'odd:Mute' failed on .* with an empty turn: step returned None"),
        ("Broken", "the reward cannot be loaded: RuntimeError: no world"),
    ],
)
def test_a_broken_environment_is_found_before_a_run(tmp_path, name, message):
    (tmp_path / "odd.py").write_text(ENVIRONMENTS)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    config = TaskConfig(name=f"odd:{name}", reward_folder=str(tmp_path), train=str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match=message):
        check_reward(load_task(config), config)


def test_a_file_of_completions_has_no_conversations(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"things": "ab", "secret": "a", "num_questions": 1, "completion": "=a."}\n')
    with pytest.raises(ValueError, match="'twenty-questions' is an environment"):
        verify_file(TaskConfig(name="twenty-questions"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
