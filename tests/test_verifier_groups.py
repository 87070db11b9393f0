"""A reward that judges all completions of a prompt at once: the same groups, limits and faults from every caller."""

import json

import pytest

from fastrl.cli import main
from fastrl.config.schema import TaskConfig
from fastrl.tasks import load_task
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier import batch
from fastrl.tasks.verifier.pool import Verdict, VerifierError, VerifierPool
from fastrl.tasks.verify import check_reward

REWARDS = """
import ctypes, os, time
import numpy as np
from fastrl.tasks.problem import Score

def shares(prompt, completions, *, scale=1.0, **row):  # how many of the group wrote the same
    for completion in completions:
        if completion == "hang": time.sleep(60)
        if completion == "segfault": ctypes.string_at(0)
        if completion == "exit": os._exit(3)
        if completion == "raise": raise KeyError("no preference")
        if completion == "slow": time.sleep(0.15)
        if completion == "memory": bytearray(10**12)
        if completion == "recursion": return shares(prompt, completions)
    return [scale * completions.count(completion) / len(completions) for completion in completions]

def named(prompt, completions, **row): return [Score(1.0, prompt, completion) for completion in completions]
def arrays(prompt, completions, **row): return np.arange(len(completions))
def greedy(prompt, completions, **row): return [len(completions.pop()) for _ in list(completions)]

def returns(prompt, completions, **row):
    return {"short": [1.0], "number": 1.0, "none": None, "text": "11", "nan": [1.0, float("nan")], "dict": {1: 1, 2: 2},
            "0-d": np.array(1.0)}[prompt]

def swapped(completions, prompt, **row): return [1.0]
def both(prompt, completions, completion, **row): return [1.0]
def one(p, c, **row): return float(len(c))
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    (tmp_path / "group_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return lambda function, **settings: VerifierPool(
        CustomReward(f"group_rewards:{function}"), **{"num_workers": 1} | settings
    )


def items(prompt, completions, **row):
    return [(prompt, completion, dict(row)) for completion in completions]


def values(verdicts):
    return [verdict.reward for verdict in verdicts]


def test_neighbours_of_one_prompt_and_row_are_judged_together(rewards):
    first, second = items("a", "xxyx"), items("b", "xy")
    scaled, alone = items("b", "zzz", scale=2.0), items("a", "x")
    with rewards("shares", num_workers=2) as pool:
        assert values(pool.score(first + second + scaled + alone)) == [
            *(0.75, 0.75, 0.25, 0.75),
            *(0.5, 0.5),
            *(2.0, 2.0, 2.0),
            1.0,
        ]
        assert pool.num_calls == 4 and pool.score([]) == []


def test_verdicts_of_many_groups_come_back_in_order(rewards):
    groups = [[f"{i % 3}" * (j % (i % 5 + 1) + 1) for j in range(8)] for i in range(60)]
    batch_items = [item for i, group in enumerate(groups) for item in items(f"prompt {i}", group)]
    with rewards("shares", num_workers=2) as pool:
        found = values(pool.score(batch_items))
    assert found == [group.count(completion) / 8 for group in groups for completion in group]


def test_a_group_may_return_scores_and_arrays_and_spoil_its_list(rewards):
    with rewards("named") as pool:
        verdicts = pool.score(items("p", "uv"))
        assert verdicts == [Verdict(1.0, "p")] * 2 and [v.answer for v in verdicts] == ["u", "v"]
    with rewards("arrays") as pool:
        assert values(pool.score(items("p", "uvw"))) == [0.0, 1.0, 2.0]
    with rewards("greedy") as pool:
        verdicts = pool.score(items("p", ["1", "22", "333"]))
        assert values(verdicts) == [3.0, 2.0, 1.0] and [v.answer for v in verdicts] == ["1", "22", "333"]


def test_a_completion_that_no_worker_should_see_is_left_out_of_its_group(rewards):
    with rewards("shares") as pool:
        verdicts = pool.score(items("p", ["a", "x" * (batch.MAX_BYTES + 1), "b", "\ud800", "a"]))
    assert values(verdicts) == [2 / 3, 0.0, 1 / 3, 0.0, 2 / 3]
    assert [v.reason for v in verdicts] == ["", "too long", "", "invalid unicode", ""]


@pytest.mark.parametrize(
    ("guilty", "reason"),
    [("hang", "timeout"), ("segfault", "crashed"), ("memory", "memory"), ("recursion", "recursion")],
)
def test_a_limit_hits_the_whole_group_and_no_other(rewards, guilty, reason):
    with rewards("shares", timeout_s=0.2, num_workers=2) as pool:
        verdicts = pool.score([*items("a", "xx"), *items("b", ["x", guilty, "x"]), *items("c", "yy")])
    assert verdicts == [Verdict(1.0, "")] * 2 + [Verdict(0.0, reason)] * 3 + [Verdict(1.0, "")] * 2
    assert pool.num_limits[reason] == 1


def test_the_time_limit_of_a_group_grows_with_its_completions(rewards):
    with rewards("shares", timeout_s=0.25) as pool:
        assert values(pool.score([*items("a", ["slow"] * 4), *items("b", ["slow"] * 3)])) == [1.0] * 7
        assert not pool.num_limits


@pytest.mark.parametrize(
    ("guilty", "reason"),
    [("raise", "KeyError: 'no preference'"), ("exit", "exited with status 3 3 times on this group")],
)
def test_a_fault_gives_no_reward_to_the_whole_group(rewards, guilty, reason):
    with rewards("shares") as pool:
        verdicts = pool.score([*items("a", "xx"), *items("b", ["x", guilty])])
        assert values(verdicts) == [1.0, 1.0, None, None] and pool.num_faults == 1
        assert verdicts[2] == verdicts[3] and reason in verdicts[2].reason
        with pytest.raises(VerifierError, match=r"failed on 3 of \d+ groups"):
            pool.score([*items("b", [guilty]), *items("c", [guilty])])


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("short", "returned 1 numbers for 2 completions; expected one for each"),
        ("number", "returned 1.0 (float); expected a list of 2 numbers"),
        ("0-d", "returned 1.0 (float); expected a list"),
        ("none", "returned None (NoneType); expected a list"),
        ("text", "returned '11' (str); expected a list"),
        ("dict", "returned {1: 1, 2: 2} (dict); expected a list"),
        ("nan", "for completion 2 of 2 returned nan (float); expected a finite number"),
    ],
)
def test_what_is_no_list_of_one_number_for_each_is_a_fault_that_says_so(rewards, prompt, reason):
    with rewards("returns") as pool:
        first, second = pool.score(items(prompt, "xy"))
    assert first == second and first.is_fault and reason in first.reason


@pytest.mark.parametrize("function", ["swapped", "both"])
def test_completions_stands_second_and_alone(rewards, function, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    config = TaskConfig(name=f"group_rewards:{function}", train="rows.jsonl")
    with pytest.raises(
        ValueError, match=r"expected reward\(prompt, completion, \*\*row\), or .*; found \(.*completions"
    ):
        check_reward(load_task(config), config)


def test_other_names_judge_one_completion(rewards):
    with rewards("one") as pool:
        assert values(pool.score(items("p", ["a", "bb"]))) == [1.0, 2.0] and pool.unit() == "completion"


def test_a_group_reward_that_works_on_one_empty_completion_passes_the_check(rewards, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p"}\n')
    config = TaskConfig(name="group_rewards:shares", train="rows.jsonl")
    check_reward(load_task(config), config)


def test_verify_groups_rows_that_are_equal_wherever_they_stand(rewards, tmp_path):
    rows = [
        {"prompt": "a", "completion": "x", "finish_reason": "stop"},
        {"prompt": "b", "completion": "x"},
        {"prompt": "a", "completion": "y", "finish_reason": "length"},
        {"prompt": "a", "completion": "x", "scale": 2.0},
        {"prompt": "a", "completion": "x", "reward": None, "reason": "old"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "--task", "group_rewards:shares", "--input", "in.jsonl", "--output", "out.jsonl"]) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in scored] == [2 / 3, 1.0, 0.0, 2.0, 2 / 3]
    assert [row["completion"] for row in scored] == ["x", "x", "y", "x", "x"]
    assert scored[2]["reason"] == "truncated"
