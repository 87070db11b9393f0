"""The recipes of docs/extend.md, followed to the letter in a copy of the package: each file, each line, then a run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_training import config_of

import fastrl
from fastrl.config.files import to_toml
from fastrl.records.jsonl import read_jsonl
from fastrl.tasks.countdown import reward

PACKAGE, ROOT = Path(fastrl.__file__).parent, Path(__file__).resolve().parent.parent
RECIPES, MODEL = ROOT / "docs" / "extend.md", ROOT / "models" / "countdown"
PLACE = re.compile(r"# (\S+\.py)(?:, (above|in) (\w+))?\n")
RUNS = {
    "rank": {"algorithm.objective": "rank", "algorithm.rank.spread": "0.5"},
    "soft-gate": {"algorithm.surrogate": "soft_gate"},
    "fresh-baseline": {"algorithm.objective": "psr", "algorithm.signals": "fresh-baseline"},
    "running-baseline": {"algorithm.objective": "none", "algorithm.signals": "running-baseline"},
    "second-chance": {"algorithm.objective": "dr-grpo", "algorithm.refiner": "second-chance"},
    "first-tokens": {"algorithm.factors": "first-tokens", "algorithm.first-tokens.count": "2"},
    "off-policy-mask": {"algorithm.surrogate": "off-policy-mask", "algorithm.off-policy-mask.delta": "0.0"},
    "novelty": {"algorithm.objective": "rloo", "task.name": "novelty:reward", "task.train": "rows.jsonl"},
    "shared": {"algorithm.objective": "rloo", "task.reward": "shared"},
    "sorting": {"task.name": "sorting"},
    "second-try": {
        "algorithm.objective": "rloo",
        "task.name": "second_try:SecondTry",
        "task.train": "countdown.jsonl",
        "task.max-turn-tokens": "16",
        "sampler.max-new-tokens": "43",
        "batch.rollouts-per-prompt": "16",
    },
    "plain": {"sampler.kind": "plain"},
    "contrast": {"algorithm.objective": "none", "algorithm.signals": "contrast"},
    "distillation": {"algorithm.objective": "none", "algorithm.signals": "distillation"},
    "self-distillation": {"algorithm.signals": "self-distillation", "algorithm.self-distillation.hint": "{solution}="},
    "none": {"algorithm.objective": "none"},
}
COMMON = {"evaluation.every": "0", "evaluation.at-end": "False", "run.scored-rollouts": "64"}
SCRIPT = """
import sys, json
from fastrl.cli import main
for name, options in json.loads(sys.argv[1]).items():
    print(f"== {name}: exit status {main(options)}", flush=True)
"""


def blocks() -> list[tuple[re.Match, str]]:
    """(where it goes, code) of every block that says so."""
    found = re.findall(r"```python\n(.*?)```", RECIPES.read_text(), re.DOTALL)
    return [(place, block[place.end() :]) for block in found if (place := PLACE.match(block))]


def follow(root: Path) -> None:
    """Do what the recipes say in a copy of the package under root; files of the user's own lie beside it."""
    shutil.copytree(PACKAGE, root / "fastrl", ignore=shutil.ignore_patterns("__pycache__"))
    for place, code in blocks():
        name, how, table = place.groups()
        path = root / name.replace("kernels/", "fastrl/kernels/") if "/" in name else root / name
        if how is None:
            path.write_text(code)
            continue
        before, start, after = re.split(rf"^({table}\b.*\n)", path.read_text(), maxsplit=1, flags=re.MULTILINE)
        if how == "above":
            path.write_text(f"{before}{code}\n\n{start}{after}")
        else:  # behind the last entry
            entries, end, rest = re.split(r"^( *[)}]\n)", after, maxsplit=1, flags=re.MULTILINE)
            path.write_text(before + start + entries + code + end + rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, countdown_folder):
    """Where all runs were made, each in a folder of its name; what they said in said.txt."""
    root = tmp_path_factory.mktemp("extended")
    follow(root)
    row = {"prompt": "1 2 3 4=10:", "answer": ""}
    (root / "rows.jsonl").write_text(json.dumps(row) + "\n")
    easy = {"prompt": "1 1 1 9=12:", "numbers": [1, 1, 1, 9], "target": 12}
    (root / "countdown.jsonl").write_text(json.dumps(easy) + "\n")
    random = {"contrast": {"algorithm.contrast.expert": MODEL, "algorithm.contrast.amateur": countdown_folder}}
    random["distillation"] = {"algorithm.distillation.teacher": countdown_folder}
    commands = {}
    for name, settings in RUNS.items():
        (root / f"{name}.toml").write_text(to_toml(config_of(root / name, MODEL, num_steps=2)))
        options = COMMON | settings | random.get(name, {})
        commands[name] = [
            "train",
            f"{name}.toml",
            *(str(x) for key, value in options.items() for x in (f"--{key}", value)),
        ]
    environment = {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    (root / "said.txt").write_text(result.stdout + result.stderr)
    assert result.returncode == 0, result.stderr
    return root


def rollouts(folder: Path, name: str, step: int = 1) -> list[dict]:
    said = (folder / "said.txt").read_text()
    assert f"== {name}: exit status 0" in said, said
    return read_jsonl(folder / name / "rollouts" / f"step-{step:06d}.jsonl.gz")


def metrics(folder: Path, name: str) -> list[dict]:
    rollouts(folder, name)
    return read_jsonl(folder / name / "metrics.jsonl")


def test_an_objective_is_one_class_and_one_line(folder):
    rows = rollouts(folder, "rank")
    for group in {row["group"] for row in rows}:
        rewards = [row["reward"] for row in rows if row["group"] == group]
        ranks = [sum(r > other for other in rewards) - sum(r < other for other in rewards) for r in rewards]
        found = [row["advantage"] for row in rows if row["group"] == group]
        assert found == pytest.approx([0.5 * rank / (len(rewards) - 1) for rank in ranks])
    assert {row["advantage"] for row in rows} > {0.0}


def test_a_surrogate_in_pytorch_alone_trains(folder):
    rows = metrics(folder, "soft-gate")
    assert all(0 < row["grad_norm"] < 100 and row["update/num_updates"] == 2 for row in rows)
    assert all(row["ratio/mean"] != 1 for row in rows)


def test_a_signal_draws_and_judges_for_itself(folder):
    rows = rollouts(folder, "fresh-baseline")
    baselines = {(row["group"], (row["reward"] >= 1) - row["advantage"]) for row in rows}
    assert len(baselines) == 3 and {b for _, b in baselines} <= {0.0, 0.25, 0.5, 0.75, 1.0} != {0.0}
    again = {(row["group"], (row["reward"] >= 1) - row["advantage"]) for row in rollouts(folder, "fresh-baseline", 2)}
    assert baselines | again > baselines  # other draws in another step


def test_a_signal_learns_one_number(folder):
    first, second = (row["baseline/mean"] for row in metrics(folder, "running-baseline"))
    found = [
        [row["reward"] - row["advantage"] for row in rollouts(folder, "running-baseline", step)] for step in (1, 2)
    ]
    assert set(found[0]) == {0.0} and found[1] == pytest.approx([first] * len(found[1]))
    rewards = [row["reward/mean"] for row in metrics(folder, "running-baseline")]
    assert [first, second] == pytest.approx([0.1 * rewards[0], 0.9 * first + 0.1 * rewards[1]]) and first > 0


def test_a_refiner_replaces_the_first_of_groups_that_are_all_wrong(folder):
    """Beside a run that drew the same in its first step."""
    pairs = list(zip(rollouts(folder, "rank"), rollouts(folder, "second-chance"), strict=True))
    hard = {row["group"] for row, _ in pairs} - {row["group"] for row, _ in pairs if row["reward"] >= 1}
    changed = [row["group"] for row, refined in pairs if row["completion"] != refined["completion"]]
    assert hard and sorted(changed) == sorted(hard)
    assert metrics(folder, "second-chance")[0]["refine/second_chances"] == len(hard)


def test_a_factor_weighs_the_credit_that_is_there(folder):
    rows = [row for row in rollouts(folder, "first-tokens") if row["reward"] < 1]
    assert rows and all(row["credits"] == [-1, -1, *[0] * (len(row["credits"]) - 2)] for row in rows)


def test_a_sequence_surrogate_weighs_credit_by_what_the_policy_has_become(folder):
    """Two updates; in the second, wrong completions that are less likely than before are masked, right ones never."""
    rows = metrics(folder, "off-policy-mask")
    assert all(row["update/num_updates"] == 2 and row["clip/positive"] == 0 for row in rows)
    assert max(row["clip/negative"] for row in rows) > 0


def test_a_reward_judges_a_whole_group(folder):
    rows = rollouts(folder, "novelty")
    texts = [row["completion"].strip() for row in rows]
    by_group = {g: [t for t, row in zip(texts, rows, strict=True) if row["group"] == g] for g in range(3)}
    judged = [(row, by_group[row["group"]].count(t)) for row, t in zip(rows, texts, strict=True)]
    assert all(row["reward"] in (0, pytest.approx(1 / count)) for row, count in judged)
    assert any(row["reward"] > 0 for row in rows)


def test_a_task_is_one_file_and_one_line(folder):
    for row in rollouts(folder, "sorting"):
        digits = row["prompt"].removesuffix(" =").split()
        assert len(digits) == 5 and row["reward"] == float(row["completion"].strip() == " ".join(sorted(digits)))


def test_an_environment_is_one_class(folder):
    """Right at once: 1. Right behind a reply, in which no token is the model's: ½."""
    rows = rollouts(folder, "second-try") + rollouts(folder, "second-try", 2)
    for row in rows:
        first, *second = row["completion"].split("<eos>1 1 1 9=12:")
        assert row["sampler_logprobs"].count(None) == 11 * len(second) <= 11
        tries = [reward("", text.removesuffix("<eos>"), numbers=[1, 1, 1, 9], target=12) for text in (first, *second)]
        rights = [one.reward for one in tries]
        assert row["reward"] == max(rights[0], *(right / 2 for right in rights[1:]), 0.0)
    assert {row["reward"] for row in rows} == {0.0, 0.5, 1.0}
    assert 1 < metrics(folder, "second-try")[0]["turns/mean"] < 2


def test_a_sampler_is_one_file_and_one_line(folder):
    assert "sampler: plain (asked for by sampler.kind)" in (folder / "said.txt").read_text()
    for row in rollouts(folder, "plain"):
        assert row["sampler_logprobs"] == pytest.approx(row["trainer_logprobs"], abs=2e-5)
    assert metrics(folder, "plain")[1]["mismatch/max_abs"] < 1e-4


def test_second_models_score_beside_the_policy(folder):
    """The policy is the expert, and a stranger to the random amateur: likelier to the one than to the other."""
    contrast, distilled = (
        [credit for row in rollouts(folder, name) for credit in row["credits"]] for name in ("contrast", "distillation")
    )
    assert np.mean(contrast) > 1 and np.mean(distilled) < -1
    assert contrast == pytest.approx([-credit for credit in distilled], abs=1e-4)
    assert metrics(folder, "contrast")[0]["grad_norm"] > 0


def test_self_distillation_credits_tokens_one_by_one(folder):
    rows = rollouts(folder, "self-distillation")
    told = [row for row in rows if row["advantage"] is None]
    assert told and all(len(set(row["credits"])) > 1 for row in told)
    correct = {row["group"] for row in rows if row["reward"] >= 1}
    assert {row["group"] for row in told} <= correct
    assert np.isfinite([metrics(folder, "self-distillation")[0]["grad_norm"]]).all()


def test_nothing_that_gives_credit_is_an_error(folder):
    said = (folder / "said.txt").read_text()
    assert "== none: exit status 2" in said
    assert "error: algorithm.objective = 'none' needs a signal that gives credit instead" in said
