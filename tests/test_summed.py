"""Sums of rewards, awaited rewards and TRL's: by hand, in real workers."""

import asyncio
import json
import re
import time

import numpy as np
import pytest
from rollout_cases import Rollout, batch_of, credited

from fastrl.config.schema import TaskConfig
from fastrl.records.step_metrics import part_metrics
from fastrl.tasks import load_task
from fastrl.tasks.awaited import then, together
from fastrl.tasks.problem import Score, Weighted
from fastrl.tasks.reward_rules import trained_by
from fastrl.tasks.signatures import is_async, is_of_trl, judges_groups
from fastrl.tasks.summed import SummedReward
from fastrl.tasks.trl import TrlReward
from fastrl.tasks.verifier.pool import VerifierPool

REWARDS = """
import asyncio, time
from fastrl.tasks.problem import Score

def right(prompt, completion, *, answer, **row):
    return Score(float(completion == answer), "ok" if completion == answer else "no", completion)

def brevity(prompt, completion, **row):
    return -len(completion)

def of_digits(prompt, completion, **row):
    return float(completion) if completion.isdigit() else None

def rank(prompt, completions, **row):
    return [sorted(completions).index(c) for c in completions]

def batched(prompts, completions, answer, trainer_state=None, **kwargs):
    assert prompts == ["1+1="] * len(completions) and trainer_state is None
    return [None if not c else float(c == a) for c, a in zip(completions, answer)]

def chats(completions, **kwargs):
    return [len(c[0]["content"]) if c[0]["role"] == "assistant" else -1.0 for c in completions]

def needs_ids(prompts, completions, completion_ids):
    return [0.0] * len(completions)

def breaks(prompt, completion, **row):
    raise KeyError("no such thing")

async def waits(prompt, completion, **row):
    await asyncio.sleep(0.5)
    return float(len(completion))

async def waits_group(prompt, completions, **row):
    await asyncio.sleep(0.5)
    return [float(len(c)) for c in completions]

async def hangs(prompt, completion, **row):
    await asyncio.sleep(60 if completion == "hang" else 0.0)
    return 1.0

async def blocks(prompt, completion, **row):
    time.sleep(0.3)
    return 1.0

def one_number(prompt, completions, **row):
    return 0.5

def too_few(prompt, completions, **row):
    return [0.5]

class Judge:
    async def __call__(self, prompt, completion, **row):
        return 2.0

class Game:
    def reset(self, prompt, **row): ...
    def step(self, text): return "", True
    def score(self): return 0.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("summed")
    (root / "many_rewards.py").write_text(REWARDS)
    (root / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    return root


def task_of(folder, name="right", **rewards):
    """The task as training sees it, of many_rewards.py."""
    rewards = {n if n == "verifier" else f"many_rewards:{n}": weight for n, weight in rewards.items()}
    config = TaskConfig(
        name=f"many_rewards:{name}", reward_folder=str(folder), train=str(folder / "rows.jsonl"), rewards=rewards
    )
    return trained_by(load_task(config), "verifier")


def verdicts(task, *texts, prompt="1+1=", num_workers=1, timeout_s=5.0):
    with VerifierPool(task.reward, num_workers=num_workers, timeout_s=timeout_s) as pool:
        return pool.score([(prompt, text, {"answer": "2"}) for text in texts])


def test_the_sum_is_weighed_and_what_does_not_apply_is_left_out(folder):
    task = task_of(folder, verifier=2.0, brevity=0.1, of_digits=0.5, rank=0.0)
    assert task.parts == ("right", "brevity", "of_digits", "rank")
    found = verdicts(task, "2", "ab")
    assert [v.reward for v in found] == pytest.approx([2 - 0.1 + 1.0, -0.2])
    assert found[0].parts == (1.0, -1.0, 2.0, 0.0)
    np.testing.assert_array_equal(found[1].parts, [0.0, -2.0, np.nan, 1.0])
    assert [(v.reason, v.answer) for v in found] == [("ok", "2"), ("no", "ab")]


def test_no_reward_but_its_own_is_asked_where_there_is_no_table(folder):
    task = task_of(folder)
    assert task.parts == () and verdicts(task, "2")[0].parts == ()
    assert load_task(TaskConfig(num_train=1)).summed == ()


def test_what_breaks_is_named(folder):
    (found,) = verdicts(task_of(folder, breaks=1.0), "2")
    assert found.is_fault and found.reason == "ValueError: reward breaks: KeyError: 'no such thing'"
    (found,) = verdicts(task_of(folder, name="of_digits", of_digits_again=0.0), "2")
    assert found.is_fault and "no attribute 'of_digits_again'" in found.reason
    (found,) = verdicts(task_of(folder, Game=1.0), "2")
    assert "Game is an environment" in found.reason
    (found,) = verdicts(task_of(folder, name="of_digits", verifier=1.0), "x")
    assert "no reward applies to the completion" in found.reason
    with pytest.raises(ValueError, match=r"task\.rewards names the task's own reward"):
        task_of(folder, right=1.0)


def test_a_rule_applies_to_the_tasks_own_reward_before_the_others_are_added(folder):
    config = TaskConfig(name="many_rewards:right", reward_folder=str(folder), train=str(folder / "rows.jsonl"))
    config = TaskConfig(**vars(config) | {"rewards": {"many_rewards:waits": 0.1}})
    found = verdicts(trained_by(load_task(config), "binary"), "2", "abc")
    assert [v.parts for v in found] == [(1.0, 1.0), (-1.0, 3.0)]
    assert [v.reward for v in found] == pytest.approx([1.1, -0.7])


def test_parts_are_metrics_by_the_sign_of_the_credit():
    rollouts = credited(batch_of([Rollout([1], [2, 3], group=i) for i in range(3)]))
    rollouts = type(rollouts)(
        **dict(rollouts.columns())
        | {"parts_R": np.array([[1.0, np.nan], [3.0, 5.0], [0.0, 7.0]]), "credits_N": np.float32([1, 1, -1, -1, -1, 0])}
    )
    found = part_metrics(rollouts, ("a", "b"))
    assert found["reward/a/mean"] == pytest.approx(4 / 3) and found["reward/b/mean"] == 6.0
    assert found["reward/a/positive"] == 1.0 and np.isnan(found["reward/b/positive"])
    assert found["reward/a/negative"] == 1.5 and found["reward/b/negative"] == 6.0
    assert found["reward/a/judged_share"] == 1.0 and found["reward/b/judged_share"] == pytest.approx(2 / 3)
    assert rollouts.take([2, 0]).parts_R[:, 0].tolist() == [0.0, 1.0]
    assert part_metrics(rollouts, ()) == {}


def test_trl_gets_lists_of_everything_and_chats_for_chats(folder):
    found = verdicts(task_of(folder, name="batched"), "2", "3")
    assert [v.reward for v in found] == [1.0, 0.0]
    found = verdicts(task_of(folder, batched=1.0), "2", "")
    assert [v.reward for v in found] == [2.0, 0.0] and np.isnan(found[1].parts[1])
    found = verdicts(task_of(folder, name="chats"), "ab", "", prompt=[{"role": "user", "content": "1+1="}])
    assert [v.reward for v in found] == [2.0, 0.0]
    (found,) = verdicts(task_of(folder, name="needs_ids"), "2")
    assert "asks for completion_ids, which verifier workers do not have" in found.reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_number", r"reward one_number returned 0\.5 \(float\) for 2 completions; expected a list, one for each"),
        ("too_few", "reward too_few returned 1 numbers for 2 completions"),
    ],
)
def test_what_is_no_number_for_each_is_shown(folder, name, message):
    for found in verdicts(task_of(folder, **{name: 1.0}), "2", "3"):
        assert found.is_fault and re.search(message, found.reason)


@pytest.mark.parametrize("row", [{"prompt": None}, {"prompt": ""}, {"self": 1}, {"function": 2}])
def test_no_column_of_the_data_takes_a_place_that_is_ours(folder, tmp_path, row):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "1+1=", "answer": "2"} | row) + "\n")
    for name, rewards in (("right", {}), ("batched", {}), ("right", {"many_rewards:batched": 1.0})):
        config = TaskConfig(f"many_rewards:{name}", str(folder), rewards=rewards, train=str(tmp_path / "rows.jsonl"))
        for rule in ("verifier", "binary"):
            task = trained_by(load_task(config), rule)
            with VerifierPool(task.reward, num_workers=1) as pool:
                found = pool.score([(p.prompt, text, p.row) for p in task.train for text in ("2", "3")])
            assert not any(v.is_fault for v in found) and found[0].reward > found[1].reward, (name, rule)


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_columns_that_trl_has_itself_are_refused(folder, column):
    task = task_of(folder, "chats")
    with VerifierPool(task.reward, num_workers=1) as pool:
        (found,) = pool.score([("1+1=", "2", {"answer": "2", column: ["gold"]})])
    assert found.is_fault and f"the data has a column '{column}'" in found.reason


def test_signatures_say_what_they_are():
    def ours(prompt, completions, **row): ...
    def theirs(prompts, completions, **columns): ...
    def short(completions, **columns): ...
    async def awaited(prompt, completion, **row): ...

    assert [is_of_trl(f) for f in (ours, theirs, short, awaited)] == [False, True, True, False]
    assert [judges_groups(TrlReward(f)) for f in (theirs, short)] == [True, True] and judges_groups(ours)
    assert is_async(awaited) and not is_async(ours) and is_async(TrlReward(awaited))
    assert is_async(SummedReward((Weighted("a", ours), Weighted("b", awaited))))
    assert not is_async(SummedReward((Weighted("a", ours),)))


def test_a_worker_awaits_many_completions_at_once(folder):
    """40 waits of 0.5 s in one worker: 20 s one after the other, 2.5 s eight at a time. A group
    and a part of a sum as well."""
    texts = [str(number) for number in range(40)]
    for task in (task_of(folder, "waits"), task_of(folder, waits=1.0), task_of(folder, "waits_group")):
        with VerifierPool(task.reward, num_workers=1) as pool:
            pool.unit()
            start = time.perf_counter()
            found = pool.score([(f"p{text}", text, {"answer": "2"}) for text in texts])
            assert time.perf_counter() - start < 2
        assert [v.reward for v in found] == [len(text) + (text == "2") * bool(task.parts) for text in texts]
    assert verdicts(task_of(folder, "Judge"), "a")[0].reward == 2.0


def test_an_await_that_hangs_is_ended_alone(folder):
    found = verdicts(task_of(folder, "hangs"), *"abc", "hang", *"def", timeout_s=1.0)
    assert [v.reward for v in found] == [1.0] * 3 + [0.0] + [1.0] * 3 and found[3].reason == "timeout"


def test_one_that_blocks_the_loop_keeps_its_own_time(folder):
    """Eight times 0.3 s in one chunk, each within the limit of 1 s."""
    found = verdicts(task_of(folder, "blocks"), *"abcdefgh", timeout_s=1.0)
    assert [(v.reward, v.reason) for v in found] == [(1.0, "")] * 8


def test_together_and_then_wait_only_where_something_waits():
    async def later(value):
        return value

    assert then(together([1, 2]), sum) == 3
    assert asyncio.run(then(together([1, later(2), 3]), list)) == [1, 2, 3]
    assert Score(1.0).parts == ()


def test_when_one_raises_the_others_do_not_run_on():
    ended = []

    async def slow():
        try:
            await asyncio.sleep(0.1)
            ended.append("ran on")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fails():
        raise KeyError("x")

    async def both():
        with pytest.raises(KeyError, match="x"):
            await together([slow(), fails()])
        await asyncio.sleep(0.2)

    asyncio.run(both())
    assert ended == ["cancelled"]
