"""The model card of a run, read by the hub's own parser, and the push, to a hub that is a server of these tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from local_hub import Hub, environment_of
from test_training import config_of

from fastrl import train
from fastrl.cli import main

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def push(address: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastrl.cli", "push", *arguments]
    return subprocess.run(command, env=environment_of(address), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory, countdown_folder) -> Path:
    folder = tmp_path_factory.mktemp("pushed")
    base = folder / "base"
    base.mkdir()
    for file in countdown_folder.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    return train(config_of(folder / "run", base, num_steps=2))


def card_of(run: Path, folder: Path, *arguments: str) -> ModelCard:
    assert main(["push", str(run), "--repo", "me/tiny", "--card-only", str(folder / "card.md"), *arguments]) == 0
    return ModelCard.load(folder / "card.md")


def test_the_card_holds_the_evaluation_of_these_weights(run, tmp_path):
    card = card_of(run, tmp_path)
    data = card.data
    assert (data.library_name, data.license, data.model_name) == ("transformers", "apache-2.0", "tiny")
    assert data.base_model is None and {"fastrl", "reinforce"} <= set(data.tags)
    for name in ("test", "validation-000002"):
        evaluation = json.loads((run / "eval" / f"{name}.json").read_text())
        found = {r.metric_name: r for r in data.eval_results if r.dataset_name == f"countdown, {name}"}
        assert found.keys() == {f"pass@{k}" for k in evaluation["pass_at_k"]}
        for k, band in evaluation["pass_at_k"].items():
            result = found[f"pass@{k}"]
            assert result.metric_value == pytest.approx(band["mean"], abs=1e-6)
            assert [result.metric_args[end] for end in ("low", "high")] == pytest.approx(
                [band["low"], band["high"]], abs=1e-6
            )
            assert result.metric_args["num_problems"] == evaluation["num_problems"]
    assert "objective `reinforce`" in card.text and 'schedule = "cosine"' in card.text
    assert str(run.parent) not in str(card), "a folder of this machine"


def test_an_evaluation_of_other_weights_is_left_out(run, tmp_path, capsys):
    path = run / "eval" / "test.json"
    text = path.read_text()
    other, more = json.loads(text) | {"step": 1}, tmp_path / "more.json"
    try:
        path.write_text(json.dumps(other))
        assert {r.dataset_name for r in card_of(run, tmp_path).data.eval_results} == {"countdown, validation-000002"}
    finally:
        path.write_text(text)
    more.write_text(json.dumps(other))
    assert main(["push", str(run), "--repo", "me/tiny", "--evaluation", str(more)]) == 2
    assert "evaluates 'a step of a run', not " in capsys.readouterr().err
    more.write_text(json.dumps(other | {"model": str(run / "checkpoints" / "step-000002")}))
    data = card_of(run, tmp_path, "--evaluation", str(more), "--license", "mit").data
    assert len({r.dataset_name for r in data.eval_results}) == 3 and data.license == "mit"


def test_a_push_is_one_commit_of_the_model_and_its_card(run, hub):
    result = push(hub, str(run / "checkpoints" / "step-000002"), "--repo", "me/tiny", "--private")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"model: {hub}/me/tiny\n"
    assert Hub.created[0]["name"] == "tiny" and Hub.created[0].get("private", Hub.created[0].get("visibility"))
    assert Hub.received.keys() == FILES | {"README.md"}
    weights = run / "checkpoints" / "step-000002" / "model.safetensors"
    assert Hub.received["model.safetensors"] == weights.read_bytes()
    assert ModelCard(Hub.received["README.md"].decode()).data.eval_results


def test_what_the_hub_refuses_is_one_message(run, hub):
    Hub.status = 403
    result = push(hub, str(run), "--repo", "me/tiny")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "403" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("source", "repo", "message"),
    [
        ("run", "tiny", "--repo 'tiny': expected owner/name"),
        ("run", "me/ti ny", "Repo id must"),
        ("run/eval", "me/tiny", "neither a run's folder nor one of its checkpoints"),
        ("nothing", "me/tiny", "no folder"),
    ],
)
def test_what_cannot_be_pushed_is_said(run, capsys, source, repo, message):
    assert main(["push", str(run.parent / source), "--repo", repo]) == 2
    assert message in capsys.readouterr().err
