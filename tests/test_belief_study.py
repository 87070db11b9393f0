"""The toy of claims and belief: its problems, its rewards, and all of its arms in miniature."""

import json
import sys

import belief
import pytest
import report
import results

from fastrl.config.checks import check_train
from fastrl.tasks import load_task
from fastrl.tasks.countdown import solvable
from fastrl.tasks.reward_rules import trained_by


def test_half_of_the_problems_have_a_solution_and_the_probe_is_never_declined():
    rows = belief.problems("train", 40, 0)
    assert [row["solvable"] for row in rows] == [True, False] * 20
    for row in rows:
        digits, _, target = row["prompt"].rstrip(":").partition("=")
        assert ((tuple(sorted(map(int, digits.split()))), int(target)) in solvable()) == row["solvable"]
    shown = belief.demonstrations(rows)
    assert all(one["completion"] == str(int(row["solvable"])) for one, row in zip(shown[1::2], rows, strict=True))
    declined = sum(one["completion"] == "-" for one in belief.demonstrations(rows * 50)[::2])
    assert 0.1 < declined / 2000 < 0.2


def test_what_each_arm_pays(tmp_path):
    """For 1, 0, - and junk where there is a solution; a truth is 1, ternary pays 0 for `-` and −1 for what is wrong."""
    belief.write_rows(tmp_path / "train.jsonl", belief.problems("train", 2, 0))
    belief.write_rows(tmp_path / "validation.jsonl", belief.problems("validation", 2, 0))
    paid = {}
    for arm in belief.ARMS:
        config = check_train(belief.train_config(tmp_path, arm, 1, 15))
        task = load_task(config.task, splits=("train",))
        reward = trained_by(task, config.task.reward).reward
        said, row = ["1", "0", "-", "11"], {"solvable": True}
        scores = reward("p", said, **row) if config.task.reward == "ternary" else [reward("p", s, **row) for s in said]
        paid[arm] = [score.reward for score in scores]
    assert paid["truthful.nsr"] == [1, 0, 0, 0] and paid["ternary.nsr"] == paid["ternary.grpo"] == [1, -1, 0, -1]
    assert paid["persuasive.psr"] == [1, 0, 0, 0]


def test_the_table_has_means_and_ranges_over_seeds(tmp_path, monkeypatch):
    def measured(index: float | None, claims: int) -> dict:
        numbers = dict.fromkeys(
            ("mean_belief", "mean_belief_claimed", "mean_belief_not_claimed", "index_if_drawn"), 0.5
        )
        return {"belief": numbers | {"num_claims": claims, "num_samples": 100, "index": index and {"mean": index}}}

    runs = [{"arm": "truthful.nsr", "seed": s, "path": [measured(0.9, 1), measured(0.2 * s, 40)]} for s in (1, 2)]
    runs += [{"arm": "persuasive.psr", "seed": 1, "path": [measured(None, 100)]}]
    (tmp_path / "belief.json").write_text(json.dumps({"base": measured(0.25, 50), "runs": runs}))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.read.cache_clear()
    rows = [line.strip("| ").split(" | ") for line in report.belief_table().splitlines()[2:]]
    results.read.cache_clear()
    assert rows[0][0] == "before" and rows[0][6] == "25.0"
    assert rows[1][:3] == ["truthful.nsr", "2", "40.0 (40.0 to 40.0)"] and rows[1][6] == "30.0 (20.0 to 40.0)"
    assert rows[2][6] == "–"


@pytest.mark.slow
def test_two_arms_in_miniature(tmp_path, monkeypatch, capsys):
    small = {"NUM_TRAIN": 40, "NUM_VALIDATION": 8, "EVERY": 1, "RESULTS": tmp_path / "results.json"}
    small["ARMS"] = {name: belief.ARMS[name] for name in ("persuasive.psr", "ternary.nsr")}
    for name, value in small.items():
        monkeypatch.setattr(belief, name, value)
    monkeypatch.setattr(sys, "argv", ["belief.py", "--dry", "--work", str(tmp_path)])
    belief.main()
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in said if "seed 1, step 1:" in line] == list(small["ARMS"])
    assert not belief.RESULTS.exists()  # a dry run measures nothing
