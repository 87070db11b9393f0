"""A user's reward: found from any directory, given the same by training and `fastrl verify`, loud when it breaks."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest

from fastrl.cli import main
from fastrl.config.files import load_config
from fastrl.config.schema import TaskConfig, TrainConfig
from fastrl.prompts.tokens import prompt_ids
from fastrl.records.jsonl import read_jsonl
from fastrl.tasks import load_task
from fastrl.tasks.custom import CustomReward, home_of

SEEN = """
import json
def reward(prompt, completion, **row):
    with open({path!r}, "a") as file:
        file.write(json.dumps([prompt, row]) + "\\n")
    return 1.0
"""
ROWS = [
    {"prompt": "1 + 1 =", "answer": "2", "level": 3},
    {"problem": "the problem", "prompt": "the prompt", "answer": None},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "extra": [1, {"a": 2}],
    },
    {"question": "only a question"},
]


@pytest.fixture
def seen(tmp_path) -> Path:
    """A reward beside data and config that writes down what it was given."""
    path = tmp_path / "seen.jsonl"
    (tmp_path / "seen_reward.py").write_text(SEEN.format(path=str(path)))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_verify_gives_a_reward_what_training_gives_it(seen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = load_task(TaskConfig(name="seen_reward:reward", train="rows.jsonl"))
    in_training = [[problem.prompt, problem.row] for problem in task.train]
    assert in_training[2][0] == ROWS[2]["prompt"] and in_training[1] == [
        "the prompt",
        {"problem": "the problem", "answer": None},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(row | {"completion": "x"}) + "\n" for row in ROWS))
    assert main(["verify", "--task", "seen_reward:reward", "--input", "in.jsonl", "--output", "out.jsonl"]) == 0
    given = sorted(map(json.dumps, map(json.loads, seen.read_text().splitlines())))
    assert given == sorted(map(json.dumps, in_training))


def test_a_chat_is_rendered_by_the_models_template(countdown_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(countdown_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    rows = [{"prompt": [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}], "answer": "2"}]
    (problem,) = _problems(rows, "math", template="simple")
    task = _task(rows, "math", template="simple")
    text = tokenizer.decode(prompt_ids(task, problem, tokenizer)).replace(" ", "")
    assert text.startswith("1=2") and text.endswith("=") and "Question" not in text


def _task(rows: list[dict], name: str, **settings):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_task(TaskConfig(name=name, train=str(path), **settings))


def _problems(rows: list[dict], name: str, **settings):
    return _task(rows, name, **settings).train


@pytest.mark.parametrize("prompt", [[], ["text"], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_messages_that_are_none_are_named(prompt):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'prompt' must be text or messages"):
        _task([{"prompt": prompt}], "a_module:a_function")


def test_a_reward_is_found_beside_the_config_from_any_directory(seen, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = tmp_path / "config.toml"
    config.write_text("[task]\nname = 'seen_reward:reward'\n")
    monkeypatch.chdir(elsewhere)
    task = load_config(TrainConfig, config).task
    assert task.reward_folder == str(tmp_path)
    reward = load_task(TaskConfig(**vars(task) | {"train": str(tmp_path / "rows.jsonl")})).reward
    assert reward == CustomReward("seen_reward:reward", str(tmp_path)) and reward("p", "c") == 1.0
    (elsewhere / "seen_reward.py").write_text("")
    assert home_of("seen_reward", str(tmp_path)) == str(tmp_path) and home_of("seen_reward") == str(elsewhere)
    (elsewhere / "seen_reward.py").unlink()
    (tmp_path / "in.jsonl").write_text(json.dumps({"completion": "x", "prompt": "p"}) + "\n")
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["verify", "--task", "seen_reward:reward", *arguments]) == 0


SLOW = """
import time
def reward(prompt, completion, **row):
    time.sleep(3 if len(completion) > {limit} else 0)
    return 1.0
"""


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_judge_slower_than_its_limit_stops_the_run(tmp_path, monkeypatch, countdown_folder, capsys, limit):
    """Exit status 1, what was hit and which setting to turn; not 32 completions called wrong."""
    monkeypatch.chdir(tmp_path)
    Path("slow_reward.py").write_text(SLOW.format(limit=limit))
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i} {i + 1}="}}\n' for i in range(1, 9)))
    settings = {
        "model.path": countdown_folder, "task.name": "slow_reward:reward", "task.train": "rows.jsonl",
        "task.timeout-s": 0.5, "sampler.max-new-tokens": 6, "batch.prompts-per-step": 4,
        "batch.micro-batch-tokens": 400, "evaluation.at-end": False, "run.folder": "run", "run.num-steps": 1,
    }  # fmt: skip
    status = main(["train", *(part for k, v in settings.items() for part in (f"--{k}", str(v)))])
    said = capsys.readouterr()
    if limit:
        assert status == 0 and read_jsonl(Path("run/metrics.jsonl"))[0]["reward/mean"] > 0
    else:
        assert status == 1 and "task.timeout_s = 0.5" in said.err and "hit its limits" in said.err


RARE = """
def reward(prompt, completions, **row):
    with open("sizes", "a") as file: print(len(completions), file=file)
    return [len(completions) + 1.0 / completions.count(completion) for completion in completions]
"""


def test_a_group_is_what_is_drawn_for_a_problem_wherever_it_is_judged(tmp_path, monkeypatch, countdown_folder):
    """Groups of 8 in training and of 3 in an evaluation; `fastrl verify` on the rollouts, shuffled, says the same."""
    monkeypatch.chdir(tmp_path)
    Path("rare.py").write_text(RARE)
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i} {i + 1}="}}\n' for i in range(1, 9)))
    settings = {
        "model.path": countdown_folder, "task.name": "rare:reward", "task.train": "rows.jsonl",
        "task.test": "rows.jsonl", "sampler.max-new-tokens": 6, "batch.prompts-per-step": 4,
        "batch.micro-batch-tokens": 400, "evaluation.at-end": True, "evaluation.num-samples": 3,
        "evaluation.max-new-tokens": 6, "run.folder": "run", "run.num-steps": 1,
    }  # fmt: skip
    assert main(["train", *(part for k, v in settings.items() for part in (f"--{k}", str(v)))]) == 0
    (path,) = Path("run/rollouts").iterdir()
    rollouts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    groups = {r["group"]: [s["completion"] for s in rollouts if s["group"] == r["group"]] for r in rollouts}
    finished = [r for r in rollouts if r["finish_reason"] == "stop"]
    assert finished and [len(group) for group in groups.values()] == [8] * 4
    assert sorted(Path("sizes").read_text().split()) == ["1"] + ["3"] * 8 + ["8"] * 4  # 1: the check before training
    assert all(r["reward"] == 8 + 1 / groups[r["group"]].count(r["completion"]) for r in finished)

    shuffled = Random(0).sample(rollouts, len(rollouts))
    rows = [{key: r[key] for key in ("prompt", "completion", "finish_reason")} for r in shuffled]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "--task", "rare:reward", "--input", "in.jsonl", "--output", "out.jsonl"]) == 0
    assert [row["reward"] for row in read_jsonl(Path("out.jsonl"))] == [r["reward"] for r in shuffled]
