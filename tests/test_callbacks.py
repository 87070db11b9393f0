"""What a program hears of its run, and how it stops one."""

from pathlib import Path

import numpy as np
import pytest
from test_training import assert_bitwise_equal, config_of, weights
from torchrun import torchrun

from fastrl import Callback, train
from fastrl.config.files import to_toml
from fastrl.records import checkpoints
from fastrl.records.jsonl import read_jsonl
from fastrl.run.callbacks import Callbacks


class Listener(Callback):
    """Writes down what it hears; answers "stop" to the event that is named."""

    def __init__(self, stops_at: object = None):
        self.heard, self.steps, self.stops_at = [], [], stops_at

    def _hear(self, *event: object) -> str | None:
        self.heard.append(event)
        return "stop" if event == self.stops_at else None

    def on_step(self, step):
        self.steps.append(step)
        return self._hear("step", step.step)

    def on_evaluation(self, name, evaluation):
        assert evaluation["step"] == self.steps[-1].step and evaluation["pass_at_k"]
        return self._hear("evaluation", name)

    def on_checkpoint(self, step, folder):
        assert (folder / "model.safetensors").exists() and checkpoints.final_path(folder.parent, step) == folder
        return self._hear("checkpoint", step)

    def on_end(self, folder):
        return self._hear("end", folder.name)


def test_a_callback_hears_of_everything_in_order(tmp_path, countdown_folder):
    listener, means = Listener(), []
    path = train(
        config_of(tmp_path / "run", countdown_folder, checkpoint_every=3, keep_last=9),
        callbacks=[listener, lambda step: means.append(step.metrics["reward/mean"])],
    )
    found = [event for event in listener.heard if event[0] != "checkpoint"]
    assert found == [
        ("step", 1), ("step", 2), ("evaluation", "validation-000002"), ("step", 3), ("step", 4),
        ("evaluation", "validation-000004"), ("evaluation", "test"), ("end", "run"),
    ]  # fmt: skip
    saved = [step for kind, step in listener.heard if kind == "checkpoint"]
    assert saved == sorted(saved) and {3, 4} <= set(saved)
    assert listener.heard.index(("checkpoint", 3)) == listener.heard.index(("step", 3)) + 1
    rows = [row for row in read_jsonl(path / "metrics.jsonl") if "reward/mean" in row]
    assert means == [row["reward/mean"] for row in rows]


def test_a_step_shows_its_rollouts(tmp_path, countdown_folder):
    listener = Listener(stops_at=("step", 1))
    path = train(config_of(tmp_path / "run", countdown_folder, scored_rollouts=12), callbacks=[listener])
    (step,) = listener.steps
    assert len(step.problems) == 3 and len(step.rollouts) == len(step.completions) == 12
    rows = read_jsonl(path / "rollouts" / "step-000001.jsonl.gz")
    prompts = [step.problems[group].prompt for group in step.rollouts.groups_R]
    assert {(row["prompt"], row["completion"]) for row in rows} == set(zip(prompts, step.completions, strict=True))
    assert np.nanmean(step.rollouts.rewards_R) == step.metrics["reward/mean"]


@pytest.mark.parametrize("event", [("step", 2), ("evaluation", "validation-000002"), ("checkpoint", 2)])
def test_a_stopped_run_ends_cleanly_and_can_go_on(tmp_path, countdown_folder, event):
    """Nothing of it differs from the run that was not stopped."""
    config = config_of(tmp_path / "run", countdown_folder)
    listener = Listener(stops_at=event)
    path = train(config, callbacks=[listener])
    assert listener.heard[-2:] == [("evaluation", "test"), ("end", "run")] and len(listener.steps) == 2
    assert (path / "eval" / "test.json").exists() and weights(path, 2)
    train(config, resume=True)
    whole = train(config_of(tmp_path / "whole", countdown_folder))
    assert_bitwise_equal(weights(path), weights(whole))


def test_an_exception_ends_the_run_with_a_checkpoint(tmp_path, countdown_folder):
    def fail(step):
        if step.step == 3:
            raise LookupError("no such thing")

    config = config_of(tmp_path / "run", countdown_folder)
    with pytest.raises(LookupError, match="no such thing"):
        train(config, callbacks=[fail])
    assert weights(Path(config.run.folder), 3) and not (tmp_path / "run" / "eval" / "test.json").exists()
    assert_bitwise_equal(
        weights(train(config, resume=True)), weights(train(config_of(tmp_path / "whole", countdown_folder)))
    )


def test_what_is_no_callback_is_said(tmp_path):
    for wrong in (3, Listener):
        with pytest.raises(ValueError, match="expected objects of a class of Callback, or functions of a step"):
            Callbacks([wrong])
    for answer in (0.5, np.array([1, 2]), np.array("stop"), True, "STOP", ""):
        with pytest.raises(ValueError, match=r"answered .*; a callback returns 'stop' or None"):
            Callbacks([lambda step, answer=answer: answer]).step(None)


@pytest.mark.distributed
def test_on_several_ranks_the_main_one_hears_and_all_stop(tmp_path, countdown_folder):
    (tmp_path / "run.toml").write_text(to_toml(config_of(tmp_path / "run", countdown_folder)))
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from fastrl import TrainConfig, load_config, train\n"
        "def hear(step):\n"
        "    print(f'rank {os.environ[\"RANK\"]} step {step.step} of {len(step.completions)}', flush=True)\n"
        "    return 'stop' if step.step == 2 else None\n"
        "train(load_config(TrainConfig, sys.argv[1]), callbacks=[hear])\n"
    )
    result = torchrun(2, [str(tmp_path / "script.py"), str(tmp_path / "run.toml")])
    assert result.returncode == 0, result.stdout + result.stderr
    heard = [line for line in result.stdout.splitlines() if line.startswith("rank ")]
    assert heard == ["rank 0 step 1 of 12", "rank 0 step 2 of 12"]
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir() and (tmp_path / "run/eval/test.json").is_file()
