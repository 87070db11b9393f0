"""What a resumed run goes on with: changed inputs are named, settings that change no number are free."""

import shutil
import sys
from dataclasses import replace
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import assert_bitwise_equal, config_of, weights
from transformers import AutoTokenizer

from fastrl.cli import main
from fastrl.config.files import load_config, to_toml
from fastrl.config.schema import EvaluationConfig, TaskConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.records.changes import FREE_ON_RESUME, differences
from fastrl.records.fingerprints import _reward as reward_fingerprint
from fastrl.run.training import train

REWARD = "from judging import verdict\n\ndef reward(prompt, completion, **row):\n    return verdict(completion)\n"
JUDGING = "def verdict(completion):\n    return float(len(completion) % 2 == 0)\n"


@pytest.fixture
def own(tmp_path, monkeypatch, countdown_folder) -> TrainConfig:
    """Two steps with a reward of two files, a data file and a model of the test's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(countdown_folder, "model")
    Path("my_reward.py").write_text(REWARD)
    Path("judging.py").write_text(JUDGING)
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i} {i + 1}="}}\n' for i in range(20)))
    config = replace(
        config_of("run", "model", num_steps=2),
        task=TaskConfig("my_reward:reward", str(tmp_path), train="rows.jsonl", num_workers=1),
        evaluation=EvaluationConfig(at_end=False),
    )
    return replace(config, optimizer=replace(config.optimizer, schedule="constant"))


def cut_data() -> None:
    Path("rows.jsonl").write_text("".join(Path("rows.jsonl").read_text().splitlines(keepends=True)[:9]))


def invert_reward() -> None:
    Path("judging.py").write_text(JUDGING.replace("== 0", "== 1"))


def change_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("model")


def replace_weights() -> None:
    tensors = load_file("model/model.safetensors")
    save_file({k: v + torch.randn_like(v) for k, v in tensors.items()}, "model/model.safetensors", {"format": "pt"})


CHANGES = {
    "data": (cut_data, r"the train problems \(20 problems, \w+; now 9 problems, \w+\)"),
    "reward": (invert_reward, r"the reward \(my_reward:reward, \w+; now my_reward:reward, \w+\)"),
    "tokenizer": (change_tokenizer, r"the tokenizer \(\w+; now \w+\)"),
    "reference": (replace_weights, r"the base weights \(\w+; now \w+\)"),
    "lora": (replace_weights, r"the base weights \(\w+; now \w+\)"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_input_is_named_and_needs_a_flag(own, case, capsys):
    if case == "reference":
        own = replace(own, algorithm=replace(own.algorithm, kl_coef=0.1))
    if case == "lora":
        pytest.importorskip("peft")
        own = replace(own, model=replace(own.model, lora_rank=2))
    train(own)
    change, message = CHANGES[case]
    change()
    more = replace(own, run=replace(own.run, num_steps=3))
    with pytest.raises(ValueError, match=rf"step-000002 was made with other inputs: {message}\. .*--accept-changes"):
        train(more, resume=True)
    assert load_config(TrainConfig, "run/config.toml").run.num_steps == 2
    Path("more.toml").write_text(to_toml(more))
    assert main(["train", "more.toml", "--resume", "--accept-changes"]) == 0
    assert "The run goes on with the new ones" in capsys.readouterr().out
    train(more, resume=True)  # they are its inputs now


def test_weights_that_the_checkpoint_holds_may_change(own, tmp_path):
    train(replace(own, run=replace(own.run, folder="whole", num_steps=4)))
    train(own)
    replace_weights()
    train(replace(own, run=replace(own.run, num_steps=4)), resume=True)
    assert_bitwise_equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_what_changes_no_number_may_change(own):
    train(own)
    slower = replace(
        own,
        model=replace(own.model, gradient_checkpointing=True),
        task=replace(own.task, timeout_s=60.0, memory_mb=4096, num_workers=2),
        sampler=replace(own.sampler, batch_size=5),
        batch=replace(own.batch, micro_batch_tokens=60),
        run=replace(own.run, num_steps=4, scored_rollouts=3, watchdog_s=99.0),
    )
    train(slower, resume=True)
    assert load_config(TrainConfig, "run/config.toml") == slower


def test_a_micro_batch_is_free_unless_the_reduction_depends_on_it():
    config = config_of("run", "model")
    smaller = replace(config, batch=replace(config.batch, micro_batch_tokens=100))
    assert not differences(config, smaller)
    by_cut = [replace(c, algorithm=replace(c.algorithm, reduction="micro-batch-mean")) for c in (config, smaller)]
    assert differences(*by_cut) == ["batch.micro_batch_tokens is 200 there, 100 here"]


def test_a_module_that_only_an_import_hook_finds_is_compared(tmp_path, monkeypatch):
    """As setuptools makes one for an editable install. What is built into Python has no source."""
    path = tmp_path / "hooked_reward.py"

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return spec_from_file_location(name, tmp_path / "hooked_reward.py") if name == "hooked_reward" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    task, found = TaskConfig(name="hooked_reward:reward"), []
    for value in ("1.0", "0.0", "1.0"):
        path.write_text(f"def reward(prompt, completion, **row): return {value}\n")
        found.append(reward_fingerprint(task.name, task, None))
    assert found[0] == found[2] != found[1]
    assert reward_fingerprint("sys:exit", task, None) == reward_fingerprint("sys:exit", task, None) != found[0]


def test_settings_of_sections_within_sections_are_compared():
    other = with_settings(TrainConfig(), {"algorithm.ppo_clip.low": 0.1, "run.num_steps": 7})
    assert differences(TrainConfig(), other) == ["algorithm.ppo_clip.low is 0.2 there, 0.1 here"]


def test_free_settings_exist():
    for section, keys in FREE_ON_RESUME.items():
        assert keys <= vars(getattr(TrainConfig(), section)).keys()


def test_other_steps_say_what_becomes_of_the_schedule(own, capsys):
    cosine = replace(own, optimizer=replace(own.optimizer, schedule="cosine"))
    train(cosine)
    capsys.readouterr()
    train(replace(cosine, run=replace(cosine.run, num_steps=3)), resume=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "run.num_steps was 2 and is 3: from step 3 on the cosine schedule is that of 3 steps" in said
    with pytest.raises(ValueError, match=r"run\.num_steps = 1, but 3 steps are done: it must be at least that"):
        train(replace(cosine, run=replace(cosine.run, num_steps=1)), resume=True)
    assert load_config(TrainConfig, "run/config.toml").run.num_steps == 3


def test_accepting_changes_is_for_a_resumed_run(capsys):
    assert main(["train", "--model.path", "m", "--accept-changes"]) == 2
    assert "goes with --resume" in capsys.readouterr().err
