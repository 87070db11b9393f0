"""Two ranks draw, stop and reward what one does: a short run with two added rewards and texts that end a completion."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_training import config_of
from torchrun import torchrun

from fastrl import train
from fastrl.config.files import to_toml
from fastrl.config.schema import TrainConfig
from fastrl.records.jsonl import read_jsonl
from fastrl.tasks import load_task
from fastrl.tasks.verifier.pool import VerifierPool

STOPS = ("+", "*(")
WEIGHTS = {"verifier": 2.0, "two_rewards:brevity": 0.25, "two_rewards:rank": -0.5}
REWARDS = """
def brevity(prompt, completion, **row):
    return None if "-" in completion else -float(len(completion))

def rank(prompts, completions, **columns):
    return [sorted(completions).index(text) for text in completions]
"""


@pytest.fixture
def config(tmp_path, countdown_folder) -> TrainConfig:
    """lr: so small that the second step draws from weights that differ by no more than rounding."""
    (tmp_path / "two_rewards.py").write_text(REWARDS)
    config = config_of(tmp_path / "1", countdown_folder, num_steps=2, scored_rollouts=12)
    return replace(
        config,
        task=replace(config.task, rewards=WEIGHTS, reward_folder=str(tmp_path)),
        sampler=replace(config.sampler, stop=STOPS),
        optimizer=replace(config.optimizer, lr=1e-7),
    )


def judged(config: TrainConfig, rows: list[dict]) -> list[dict]:
    """What each reward must give to the rollouts of a file, by hand but for the task's own."""
    task = load_task(config.task, splits=("train",))
    problems = {problem.id: problem for problem in task.train}
    groups = [[one["completion"] for one in rows if one["group"] == row["group"]] for row in rows]
    items = [(problems[row["problem_id"]].prompt, row["completion"], problems[row["problem_id"]].row) for row in rows]
    with VerifierPool(task.reward, num_workers=1) as pool:
        own = [verdict.reward for verdict in pool.score(items)]
    return [
        {
            config.task.name: right,
            "brevity": None if "-" in row["completion"] else -len(row["completion"]),
            "rank": sorted(group).index(row["completion"]),
        }
        for row, group, right in zip(rows, groups, own, strict=True)
    ]


def check_stops(text: str, is_cut: bool) -> bool:
    """Whether a text ended it: none stands anywhere else."""
    ended = not is_cut and text.endswith(STOPS)
    before = next((text.removesuffix(stop) for stop in STOPS if text.endswith(stop)), text) if ended else text
    assert not any(stop in before for stop in STOPS), text
    return ended


def check_parts(config: TrainConfig, folder: Path, step: int) -> list[dict]:
    rows = read_jsonl(folder / "rollouts" / f"step-{step:06}.jsonl.gz")
    metrics = next(row for row in read_jsonl(folder / "metrics.jsonl") if row["step"] == step and "reward/mean" in row)
    weights = dict(zip((config.task.name, "brevity", "rank"), WEIGHTS.values(), strict=True))
    for row, expected in zip(rows, judged(config, rows), strict=True):
        assert row["rewards"] == expected
        cut = row["finish_reason"] == "length"
        total = sum(weights[name] * value for name, value in expected.items() if value is not None)
        assert row["reward"] == pytest.approx(min(total, 0.0) if cut else total), row
    for name in weights:
        given = [row["rewards"][name] for row in rows if row["rewards"][name] is not None]
        assert metrics[f"reward/{name}/mean"] == pytest.approx(sum(given) / len(given))
    return rows


@pytest.mark.distributed
def test_two_ranks_stop_and_reward_as_one(config, tmp_path):
    train(config)
    (tmp_path / "run.toml").write_text(to_toml(replace(config, run=replace(config.run, folder=str(tmp_path / "2")))))
    result = torchrun(2, ["fastrl", "train", str(tmp_path / "run.toml")])
    assert result.returncode == 0, result.stdout + result.stderr
    for step in (1, 2):
        alone, together = (check_parts(config, tmp_path / num_ranks, step) for num_ranks in "12")
        assert len(alone) == 12
        for ours, theirs in zip(alone, together, strict=True):
            for name in ("problem_id", "completion_ids", "reward", "rewards", "reason", "finish_reason"):
                assert ours[name] == theirs[name], name
        is_ended = [check_stops(row["completion"], row["finish_reason"] == "length") for row in together]
        assert any(is_ended) and not all(is_ended)
