"""Config files: what is refused, with which words, before anything heavy is loaded."""

import subprocess
import sys
from dataclasses import replace

import pytest

from fastrl.config import BatchConfig, EvalConfig, ModelConfig, TrainConfig, WarmupConfig
from fastrl.config_files import check_train, from_dict, load_config, to_toml

MODEL = {"model": {"path": "some/model"}}


def checked(data: dict) -> TrainConfig:
    return check_train(from_dict(TrainConfig, MODEL | data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"algoritm": {}}, "unknown key 'algoritm', did you mean 'algorithm'"),
        ({"optimizer": {"learning_rat": 1e-3}}, "unknown key 'optimizer.learning_rat'"),
        ({"optimizer": {"lrr": 1e-3}}, "did you mean 'lr'"),
        ({"algorithm": {"objective": "nrs"}}, "algorithm.objective = 'nrs'.*'psr', 'nsr'"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr = 'fast'"),
        ({"batch": 3}, "'batch' is a section, got 3"),
        ({"batch": {"rollouts_per_prompt": 0}}, "batch.rollouts_per_prompt must be at least 1, got 0"),
        ({"batch": {"prompts_per_step": 0}}, "batch.prompts_per_step must be at least 1, got 0"),
        ({"batch": {"micro_batch_tokens": 100}}, "micro_batch_tokens=100 cannot hold"),
        ({"sampler": {"temperature": 0.0}}, "sampler.temperature must be above 0"),
        ({"sampler": {"top_p": 0.9}}, "temperature only: top_p=0.9"),
        ({"sampler": {"top_k": 20}}, "temperature only.*top_k=20"),
        ({"evaluation": {"top_p": 0.0}}, r"evaluation.top_p must be in \(0, 1\], got 0.0"),
        ({"algorithm": {"objective": "grpo"}, "batch": {"rollouts_per_prompt": 1}}, "at least 2, got 1"),
        (
            {"run": {"best_metric": "pass_at_k/3"}, "evaluation": {"every": 5}},
            "'pass_at_k/3' is not in an evaluation of 16",
        ),
        ({"algorithm": {"updates_per_batch": 65}}, "updates_per_batch=65 exceeds"),
    ],
)
def test_bad_settings_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        checked(data)


def test_a_model_is_needed():
    with pytest.raises(ValueError, match=r"model\.path is missing"):
        check_train(TrainConfig())


def test_toml_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.toml"):
        load_config(TrainConfig, tmp_path / "missing.toml")
    for text in ("[batch\n", "[batch]\nsize = 3\n"):
        path = tmp_path / "bad.toml"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"bad\.toml"):
            load_config(TrainConfig, path)


@pytest.mark.parametrize("cls", [TrainConfig, WarmupConfig, EvalConfig])
def test_saved_config_reads_back_equal(cls, tmp_path):
    path = tmp_path / "config.toml"
    config = cls(model=ModelConfig(path='odd "path" \\ here'))
    path.write_text(to_toml(config))
    assert load_config(cls, path) == config


def test_preset_fixes_the_authors_semantics():
    config = checked({"algorithm": {"preset": "paper-code", "surrogate": "cispo", "clip_low": 0.5, "dual_clip": 3.0}})
    algorithm = config.algorithm
    assert (algorithm.surrogate, algorithm.clip_low, algorithm.clip_high) == ("ppo_clip", 0.2, 0.2)
    assert (algorithm.dual_clip, algorithm.minibatch_cut, algorithm.reduction) == (
        0.0,
        "after-dropping",
        "micro-batch-mean",
    )


def test_replacing_a_section_keeps_the_rest():
    config = replace(checked({}), batch=BatchConfig(2, 2, 500))
    assert check_train(config).batch.prompts_per_step == 2


def test_checking_a_config_loads_no_torch():
    code = (
        "import sys; from fastrl.config_files import from_dict, check_train; from fastrl.config import TrainConfig;"
        "import fastrl.cli; check_train(from_dict(TrainConfig, {'model': {'path': 'x'}}));"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
