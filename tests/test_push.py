"""The model card of a run, read by the hub's own parser, and the push, to a hub that is a server of these tests."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from local_hub import Hub, at_hub
from shell import ENVIRONMENT
from test_training import config_of

from fastrl import train
from fastrl.cli import main
from fastrl.hub.card import is_hub_id, model_card
from fastrl.hub.published import find_published

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def push(address: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastrl.cli", "push", *arguments]
    return subprocess.run(command, env=ENVIRONMENT | at_hub(address), capture_output=True, text=True, timeout=120)


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


def test_nothing_private_goes_to_a_public_repository(run, hub):
    Hub.private = False
    result = push(hub, str(run), "--repo", "me/tiny", "--private")
    assert result.returncode == 2 and "--private: me/tiny is there already, and public" in result.stderr
    assert not Hub.received
    assert push(hub, str(run), "--repo", "me/tiny").returncode == 0 and Hub.received


def test_no_folder_of_this_machine_is_pushed(tmp_path, countdown_folder, hub):
    """Neither in the files of an adapter nor in the card, also when the base is no longer where it was."""
    base = tmp_path / "base"
    shutil.copytree(countdown_folder, base)
    config = config_of(tmp_path / "run", base, num_steps=1)
    path = train(replace(config, model=replace(config.model, lora_rank=2)))
    assert str(base) in (path / "checkpoints" / "step-000001" / "adapter_config.json").read_text()
    for place in (base, tmp_path / "elsewhere"):
        base = base.rename(place)
        result = push(hub, str(path), "--repo", "me/tiny")
        assert result.returncode == 0, result.stderr
        assert json.loads(Hub.received["adapter_config.json"])["base_model_name_or_path"] == "base"
        assert not [name for name, content in Hub.received.items() if str(tmp_path).encode() in content]
        assert ModelCard(Hub.received["README.md"].decode()).data.base_model is None


@pytest.mark.parametrize("name", ["/data/rows", "/rows", "./rows", "rows/", "a/b/c", "~/rows", "../rows", ""])
def test_a_path_is_no_id_of_the_hub(name, tmp_path):
    assert not is_hub_id(name, tmp_path) and is_hub_id("me/rows", tmp_path) and is_hub_id("gpt2", tmp_path)


def test_places_of_the_run_stay_out_of_the_card(run, tmp_path, monkeypatch):
    """A relative path was one where the run began, wherever it is pushed; and a task's server has an address."""
    monkeypatch.chdir(tmp_path)
    published = find_published(run)
    config = published.config
    assert (run.parent / "base").is_dir() and not Path("base").exists()
    near = replace(config, model=replace(config.model, path="base"), task=replace(config.task, train="base/rows"))
    (run.parent / "base" / "rows").mkdir(exist_ok=True)
    card = model_card(replace(published, config=near), "me/tiny")
    assert card.data.base_model is None and not card.data.datasets
    served = replace(config, task=replace(config.task, name="openenv:http://10.0.0.7:8000"))
    card = str(model_card(replace(published, config=served), "me/tiny"))
    assert "10.0.0.7" not in card and "task `openenv:http://…`" in card


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
