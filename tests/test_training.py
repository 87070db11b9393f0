"""Whole runs on a tiny random model: records, bitwise resume, interruption, bad input, through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.evaluation.evaluator import Evaluator
from fastrl.records import checkpoint_writer, checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.jsonl import read_jsonl
from fastrl.run.callbacks import Callback
from fastrl.run.training import train
from fastrl.update import Updater

NUM_STEPS = 4
STEPS = [1, 2, 2, 3, 4, 4]  # a line a step, and one for the validation of every second


def config_of(folder: Path, model: Path, **run) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path=str(model)),
        task=TaskConfig(num_train=20, num_validation=3, num_test=3, num_workers=1),
        sampler=SamplerConfig(max_new_tokens=12),
        algorithm=AlgorithmConfig(objective="reinforce", updates_per_batch=2),
        batch=BatchConfig(prompts_per_step=3, rollouts_per_prompt=4, micro_batch_tokens=200),
        optimizer=OptimizerConfig(lr=1e-3, schedule="cosine", warmup_steps=2),
        evaluation=EvaluationConfig(every=2, num_samples=4),
        run=RunConfig(
            folder=str(folder),
            **{"num_steps": NUM_STEPS, "checkpoint_every": 2, "scored_rollouts": 5, "rescored_every": 2, "sinks": ()}
            | run,
        ),
    )


def weights(folder: Path, step: int = NUM_STEPS) -> dict:
    path = folder / "checkpoints" / f"step-{step:06d}"
    (trainer,) = (path / "trainer").iterdir()
    return load_file(path / "model.safetensors") | load_file(trainer)


def assert_bitwise_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, countdown_folder) -> Path:
    """A finished run with TensorBoard."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return train(config_of(folder, countdown_folder, sinks=("tensorboard",)))


def test_a_run_leaves_its_records(finished):
    rows = read_jsonl(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == STEPS
    steps = [row for row in rows if "reward/mean" in row]
    for row in steps:
        assert row["rollouts/num_positive"] + row["rollouts/num_negative"] + row["rollouts/num_zero"] == 12
        assert row["update/num_updates"] == 2
        assert row["mismatch/max_abs"] < 1e-4
        assert row["entropy/mean"] > 0
    assert [row["step"] for row in rows if "eval/pass_at_1" in row] == [2, 4]
    assert list((finished / "tensorboard").glob("events*"))
    evaluation = json.loads((finished / "eval" / "test.json").read_text())
    assert (evaluation["num_problems"], evaluation["num_samples"], len(evaluation["problems"])) == (3, 4, 3)
    assert set(evaluation["pass_at_k"]) == {"1", "2", "4"} == set(evaluation["maj_at_k"])
    assert evaluation["mean_token_entropy"] > 0


def test_rollouts_are_written_with_both_log_probs(finished):
    rows = read_jsonl(finished / "rollouts" / "step-000002.jsonl.gz")
    assert len(rows) == 5
    for row in rows:
        assert row["reward"] in (0.0, 1.0) and row["advantage"] in (-1.0, 1.0)
        assert row["trainer_logprobs"] == pytest.approx(row["sampler_logprobs"], abs=1e-4)
        assert len(row["trainer_logprobs"]) == len(row["completion_ids"]) == len(row["entropy"])


def assert_rescored_by(checkpoint: Path, rows: list[dict]) -> None:
    """The rollouts' log-probs after the update are those of the checkpoint, and were others before."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).float()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in rows:
        prompt, completion = tokenizer(row["prompt"]).input_ids, row["completion_ids"]
        with torch.no_grad():
            table = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = table.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()
        assert row["updated_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["updated_logprobs"] != pytest.approx(row["trainer_logprobs"], abs=1e-4)


def test_log_probs_after_the_update_are_those_of_the_new_weights(finished):
    rows = read_jsonl(finished / "rollouts" / "step-000002.jsonl.gz")
    assert_rescored_by(finished / "checkpoints" / "step-000002", rows)
    assert all("updated_logprobs" not in row for row in read_jsonl(finished / "rollouts" / "step-000001.jsonl.gz"))


def test_a_run_ends_with_a_report_of_itself(finished):
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', (finished / "report.html").read_text()
    )
    data = json.loads(text)
    (run,) = data["runs"]
    assert run["last_step"] == NUM_STEPS and len(run["metrics"]["entropy/mean"]) == NUM_STEPS
    assert [e["name"] for e in run["evaluations"]] == ["validation-000002", "test", "validation-000004"]
    assert len(data["rollouts"]["rows"]) == 5 * NUM_STEPS
    assert data["completions"].keys() == {"test", "validation-000002", "validation-000004"}
    assert data["completions"]["test"]["total"] == 3 * 4
    assert min(run["metrics"]["memory/resident_gib"]) > 0.05


@pytest.mark.parametrize("place", ["report.html/", "eval/deep.json"])
def test_a_run_whose_report_cannot_be_written_has_finished(finished, countdown_folder, tmp_path, capsys, place):
    folder, heard = tmp_path / "run", []
    shutil.copytree(finished, folder)
    (folder / "report.html").unlink()
    if place.endswith("/"):
        (folder / place).mkdir()  # OSError
    else:
        (folder / place).write_text("[" * 100_000)  # RecursionError

    class Listener(Callback):
        def on_end(self, folder: Path) -> None:
            heard.append(folder)

    config = config_of(folder, countdown_folder, sinks=("tensorboard",))
    assert train(config, resume=True, callbacks=[Listener()]) == folder and heard == [folder]
    lines = [line for line in capsys.readouterr().out.splitlines() if "report.html could not be written" in line]
    assert len(lines) == 1 and lines[0].endswith(f"fastrl watch {folder} --report writes it again")
    assert ("IsADirectoryError" if place.endswith("/") else "RecursionError") in lines[0]


def test_checkpoints_load_in_transformers_and_hold_no_pickle(finished):
    names = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert names == ["best", "step-000002", "step-000004"]
    files = [p for p in (finished / "checkpoints").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    model = AutoModelForCausalLM.from_pretrained(finished / "checkpoints" / "step-000004")
    stored = load_file(finished / "checkpoints" / "step-000004" / "model.safetensors")
    assert all(model.state_dict()[name].equal(value) for name, value in stored.items())


def test_the_same_run_again_gives_the_same_weights(finished, countdown_folder, tmp_path):
    again = train(config_of(tmp_path / "again", countdown_folder))
    assert_bitwise_equal(weights(finished), weights(again))


def test_resume_continues_bitwise(finished, countdown_folder, tmp_path):
    folder = tmp_path / "run"
    config = config_of(folder, countdown_folder)
    train(config)
    newest = folder / "checkpoints" / "step-000004"
    model_file = newest / "model.safetensors"
    model_file.write_bytes(model_file.read_bytes()[:-100])  # a torn write: the previous checkpoint must be taken
    (folder / "rollouts" / "step-000009.jsonl.gz").write_bytes(b"")  # of a branch that went further
    train(config, resume=True)
    assert checkpoints.defect(newest) is None
    assert_bitwise_equal(weights(finished), weights(folder))
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == STEPS
    assert [row["step"] for row in read_jsonl(folder / "metrics.dropped.jsonl")] == [3, 4, 4]
    assert (folder / "checkpoints" / "damaged-step-000004.0").is_dir()
    assert [p.name[:11] for p in sorted((folder / "rollouts").iterdir())] == [f"step-00000{i}" for i in range(1, 5)]
    aside = {p.parent.name: sorted(q.name for q in p.parent.iterdir()) for p in (folder / "dropped").glob("*/*")}
    assert aside["rollouts"] == [f"step-00000{i}.jsonl.gz" for i in (3, 4, 9)]
    evaluated = [
        f"{name}.{ending}" for name in ("test", "validation-000004") for ending in ("completions.jsonl.gz", "json")
    ]
    assert aside["eval"] == evaluated
    first, second = ((f / "metrics.jsonl").read_text().splitlines()[4] for f in (finished, folder))
    untimed = [
        {k: v for k, v in json.loads(x).items() if not k.startswith(("time/", "throughput", "memory/"))}
        for x in (first, second)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_resume_is_bitwise(finished, countdown_folder, tmp_path, signal_number):
    folder = tmp_path / "run"
    config = config_of(folder, countdown_folder)
    (tmp_path / "config.toml").write_text(to_toml(config))
    command = [sys.executable, "-m", "fastrl.cli", "train", str(tmp_path / "config.toml")]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        while not (folder / "rollouts" / "step-000001.jsonl.gz").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.005)
        process.send_signal(signal_number)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "saving a checkpoint of step" in output
    assert checkpoints.latest_sound(folder / "checkpoints", print) is not None
    train(config, resume=True)
    assert_bitwise_equal(weights(finished), weights(folder))
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == STEPS
    names = [sorted(p.name for p in (f / "eval").iterdir()) for f in (finished, folder)]
    assert names[0] == names[1]


@pytest.mark.parametrize("moment", ["update", "validation", "checkpoint", "copy"])
def test_an_interrupt_at_an_odd_moment_costs_no_record(finished, countdown_folder, tmp_path, monkeypatch, moment):
    """SIGINT inside step 2: its update, validation, or first checkpoint; or death before that is copied to `best`."""
    folder = tmp_path / "run"
    config = config_of(folder, countdown_folder)
    owner, name, number = {
        "update": (Updater, "run", 2),
        "validation": (Evaluator, "run", 1),
        "checkpoint": (CheckpointWriter, "save", 1),
        "copy": (checkpoint_writer, "keep_as_best", 1),
    }[moment]
    original, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == number:
            if moment == "copy":
                raise OSError("died")
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(OSError if moment == "copy" else KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    assert_bitwise_equal(weights(finished), weights(folder))
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == STEPS
    assert (folder / "eval" / "validation-000002.json").exists()
    best, expected = (load_file(f / "checkpoints" / "best" / "model.safetensors") for f in (folder, finished))
    assert_bitwise_equal(best, expected)
    assert_bitwise_equal(best, load_file(finished / "checkpoints" / "step-000002" / "model.safetensors"))
    state = checkpoints.load_state(folder / "checkpoints" / "step-000004")
    assert state["best_step"] == 2


def test_damaged_checkpoints_are_never_counted_or_deleted(countdown_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    config = config_of(folder, countdown_folder, keep_last=1)
    config = replace(config, evaluation=EvaluationConfig(at_end=False))
    train(config)
    (newest,) = (folder / "checkpoints").glob("step-*")
    (newest / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        train(config, resume=True)
    assert len(read_jsonl(folder / "metrics.jsonl")) == NUM_STEPS
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["damaged-step-000004.0"]


def test_a_full_disk_is_one_message_and_loses_nothing_written(countdown_folder, tmp_path):
    """A limit on file size stands in for the full disk: metrics fit, the model does not."""
    config = config_of(tmp_path / "run", countdown_folder)
    (tmp_path / "config.toml").write_text(to_toml(config))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from fastrl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", str(tmp_path / "config.toml")]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONSAFEPATH": "1"})
    assert result.returncode == 2
    assert "could not be written" in result.stderr and "Traceback" not in result.stderr
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) >= 1
    assert not list((tmp_path / "run" / "checkpoints").glob(".*draft*"))


def test_resuming_a_run_that_has_no_checkpoint_starts_it(countdown_folder, tmp_path, capsys):
    config = replace(config_of(tmp_path / "run", countdown_folder), evaluation=EvaluationConfig(at_end=False))
    train(replace(config, run=replace(config.run, num_steps=1)), resume=True)
    assert "there is no checkpoint yet" in capsys.readouterr().out


def test_a_folder_never_takes_a_second_run(finished, countdown_folder):
    config = config_of(finished, countdown_folder, sinks=("tensorboard",))
    before = sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file())
    with pytest.raises(ValueError, match="already holds this run; continue it with --resume"):
        train(config)
    other = replace(config, optimizer=OptimizerConfig(lr=0.5))
    with pytest.raises(ValueError, match=r"another config: optimizer.lr is 0.001 there, 0.5 here"):
        train(other, resume=True)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in finished.rglob("*") if p.is_file())


def bad_input(capsys, *arguments: str) -> str:
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_message_and_exit_status_2(countdown_folder, tmp_path, capsys):
    model = ["--model.path", str(countdown_folder), "--run.folder", str(tmp_path / "run")]
    path = tmp_path / "config.toml"
    path.write_text("[algorithm]\nobjectiv = 'nsr'\n")
    assert "did you mean 'objective'" in bad_input(capsys, str(path))
    assert "no config file" in bad_input(capsys, str(tmp_path / "none.toml"))
    assert "at least 1, got 0" in bad_input(capsys, *model, "--batch.rollouts-per-prompt", "0")
    assert "no config.json there" in bad_input(capsys, "--model.path", "./none", "--run.folder", str(tmp_path / "run"))
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    assert "a run's models lie in" in bad_input(capsys, "--model.path", str(tmp_path / "other"), *model[2:])
    math = [*model, "--task.name", "math"]
    assert "none.jsonl" in bad_input(capsys, *math, "--task.train", str(tmp_path / "none.jsonl"))
    good = tmp_path / "good.jsonl"
    good.write_text('{"problem": "1+1?", "answer": "2"}\n')
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?"}\n')
    error = bad_input(capsys, *math, "--task.train", str(rows))
    assert "rows.jsonl:2" in error and "answer" in error
    budget = ["--batch.micro-batch-tokens", "20", "--sampler.max-new-tokens", "12"]
    assert "make 23 tokens, more than batch.micro_batch_tokens=20" in bad_input(capsys, *model, *budget)
    error = bad_input(capsys, *model, "--sampler.max-new-tokens", "600")
    assert "make 611 tokens, more than the model's context=512" in error
    every = [*math, "--task.train", str(good), "--evaluation.every", "5"]
    assert "needs validation problems" in bad_input(capsys, *every)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("body", "value"), [("None", "None"), ("float('nan')", "nan"), ("'good'", "good")])
def test_a_broken_reward_function_is_found_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, body, value):
    (tmp_path / "my_reward.py").write_text(f"def reward(prompt, completion, **row):\n    return {body}\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+4="}\n')
    monkeypatch.chdir(tmp_path)
    error = bad_input(
        capsys, "--model.path", "any/model", "--task.name", "my_reward:reward", "--task.train", "rows.jsonl"
    )
    assert "reward" in error and value in error


def test_unknown_options_are_errors(countdown_folder):
    with pytest.raises(SystemExit) as error:
        main(["train", "--model.path", str(countdown_folder), "--algorithm.objectiv", "nsr"])
    assert error.value.code == 2
