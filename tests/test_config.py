"""Config files: what is refused, with which words, before anything heavy is loaded."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fastrl.config.algorithm import AlgorithmConfig, chosen, make_sections
from fastrl.config.annotations import check_ranges, is_number_type, rules_of
from fastrl.config.checks import check_eval, check_ranks, check_train, check_warmup
from fastrl.config.files import from_dict, load_config, to_toml
from fastrl.config.old_keys import RENAMED
from fastrl.config.reference import reference
from fastrl.config.schema import BatchConfig, EvalConfig, ModelConfig, TaskConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import settings_of, with_settings
from fastrl.kernels import SURROGATES, PpoClip
from fastrl.learning.objectives import OBJECTIVES, Grpo, WReinforce

MODEL = {"model": {"path": "some/model"}}
ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def checked(data: dict) -> TrainConfig:
    return check_train(from_dict(TrainConfig, MODEL | data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"algoritm": {}}, "unknown key 'algoritm', did you mean 'algorithm'"),
        ({"optimizer": {"learning_rat": 1e-3}}, "unknown key 'optimizer.learning_rat'"),
        ({"optimizer": {"lrr": 1e-3}}, "did you mean 'lr'"),
        ({"algorithm": {"objective": "nrs"}}, "algorithm.objective = 'nrs' is unknown, did you mean 'nsr'"),
        (
            {"algorithm": {"surrogate": 3}},
            "algorithm.surrogate = 3 is unknown; known: reinforce, ppo_clip, cispo, gspo",
        ),
        ({"algorithm": {"reduction": "token-mean"}}, "reduction = 'token-mean' is unknown, did you mean 'token-mean-"),
        ({"algorithm": {"signals": ["distilation"]}}, "'distilation' is unknown, did you mean 'distillation'"),
        ({"algorithm": {"ppo_clip": {"lo": 0.1}}}, "unknown key 'algorithm.ppo_clip.lo', did you mean 'low'"),
        (
            {"algorithm": {"w_reinforce": {"compares_group": True}}},
            "unknown key 'algorithm.w_reinforce.compares_group'",
        ),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr = 'fast': a number is needed"),
        ({"batch": 3}, "'batch' is a section, got 3"),
        ({"batch": {"rollouts_per_prompt": 0}}, "batch.rollouts_per_prompt must be at least 1, got 0"),
        ({"batch": {"prompts_per_step": 0}}, "batch.prompts_per_step must be at least 1, got 0"),
        ({"batch": {"micro_batch_tokens": 100}}, "micro_batch_tokens=100 cannot hold"),
        ({"sampler": {"temperature": 0.0}}, r"sampler\.temperature must be above 0, got 0\.0"),
        ({"sampler": {"top_p": 0.9}}, "temperature only: top_p=0.9"),
        ({"sampler": {"top_k": 20}}, "temperature only.*top_k=20"),
        ({"evaluation": {"top_p": 0.0}}, r"evaluation\.top_p must be above 0, got 0\.0"),
        ({"algorithm": {"objective": "grpo"}, "batch": {"rollouts_per_prompt": 1}}, "at least 2, got 1"),
        ({"optimizer": {"max_grad_norm": -1.0}}, r"optimizer\.max_grad_norm must be at least 0, got -1"),
        ({"optimizer": {"lr": float("inf")}}, r"optimizer\.lr must be finite, got inf"),
        ({"optimizer": {"beta1": 1.0}}, r"optimizer\.beta1 must be below 1, got 1\.0"),
        ({"optimizer": {"lr": True}}, r"optimizer\.lr = True: a number is needed"),
        ({"run": {"num_steps": "3"}}, r"run\.num_steps = '3': a number is needed"),
        ({"evaluation": {"every": -1}}, r"evaluation\.every must be at least 0, got -1"),
        ({"algorithm": {"ppo_clip": {"low": 1.5}}}, r"algorithm\.ppo_clip\.low must be below 1, got 1\.5"),
        (
            {"algorithm": {"ppo_clip": {"dual": 0.5}}},
            r"^algorithm\.ppo_clip = {'dual': 0\.5}: ppo_clip dual must be above 1, or 0 for none, got 0\.5",
        ),
        ({"algorithm": {"importance": {"cap": 1.0}}}, r"algorithm\.importance\.cap must be above 1, got 1\.0"),
        ({"algorithm": {"overlong": {"buffer": 5}}}, "objective nsr only asks whether"),
        (
            {"algorithm": {"preset": "paper-code", "ppo_clip": {"low": 0.5}}},
            r"means ppo_clip\.low = 0\.2, but algorithm\.ppo_clip\.low = 0\.5 was asked for",
        ),
        ({"task": {"num_workers": 0}}, r"task\.num_workers must be at least 1, got 0"),
        (
            {"run": {"best_metric": "pass_at_k/3"}, "evaluation": {"every": 5}},
            "'pass_at_k/3' is not in an evaluation of 16",
        ),
        ({"algorithm": {"updates_per_batch": 65}}, "updates_per_batch=65 exceeds"),
        ({"algorithm": {"entropy_coef": -1.0}}, r"algorithm\.entropy_coef must be at least 0, got -1"),
        (
            {"algorithm": {"w_reinforce": {"positive_weight": -1.0}}},
            r"w_reinforce\.positive_weight must be at least 0, got -1",
        ),
        ({"algorithm": {"correct_threshold": float("nan")}}, r"algorithm\.correct_threshold must be finite, got nan"),
        (
            {"algorithm": {"objective": "grpo", "overlong": {"buffer": 65}}, "sampler": {"max_new_tokens": 64}},
            r"algorithm\.overlong\.buffer=65 exceeds sampler.max_new_tokens=64",
        ),
    ],
)
def test_bad_settings_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        checked(data)


@pytest.mark.parametrize("cls", [TrainConfig, WarmupConfig, EvalConfig])
def test_every_number_has_a_range(cls):
    """A setting that nobody thought about would be checked by nobody: one without bounds says so, as a seed does."""
    assert not [name for name, kind, _ in settings_of(cls()) if is_number_type(kind) and not rules_of(kind)]


@pytest.mark.parametrize("cls", [TrainConfig, WarmupConfig, EvalConfig])
def test_defaults_are_within_their_ranges_and_every_bound_is_checked_in_python_too(cls):
    check_ranges(cls())
    with pytest.raises(ValueError, match="'model' is a section, got 'm'"):
        check_ranges(cls(model="m"))
    if cls is TrainConfig:
        for name in ("algorithm.overlong.penalty", "algorithm.distillation.weight", "optimizer.lr"):
            with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
                check_ranges(with_settings(cls(), {name: -1.0}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_outside_of_sections_are_checked_too(value):
    with pytest.raises(ValueError, match="correct_threshold must be finite"):
        check_eval(EvalConfig(model=ModelConfig("m"), correct_threshold=value))


@pytest.mark.parametrize(
    "name", ["sampler.stop", "sampler.stop_token_ids", "task.stop", "model.lora_targets", "algorithm.signals"]
)
def test_a_text_is_no_list_of_its_characters(name):
    config = with_settings(TrainConfig(model=ModelConfig("m")), {name: "END"})
    with pytest.raises(ValueError, match=rf"{name} must be a list of texts, such as \['END'\], got 'END'"):
        check_train(config)


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


def test_a_byte_order_mark_is_no_syntax_error(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\nfolder = 'r\xc3\xbcn'\n")
    assert load_config(TrainConfig, path).run.folder == "rün"


def test_home_is_expanded_wherever_a_path_is_taken(monkeypatch, tmp_path):
    """Every setting that may be a path, however it is given; text with a ~ in it elsewhere stays."""
    monkeypatch.setenv("HOME", "/home/me")
    sections = {"model": ["path"], "task": ["train", "validation", "test"], "run": ["folder"], "data": ["file"]}
    tops = {WarmupConfig: ["output"], EvalConfig: ["output", "base"], TrainConfig: []}
    for cls, keys in tops.items():
        known = {name: {k: f"~/{k}" for k in ks} for name, ks in sections.items() if hasattr(cls(), name)}
        data = known | {key: f"~/{key}" for key in keys}
        config = from_dict(cls, data)
        for name, settings in known.items():
            assert all(getattr(getattr(config, name), key) == f"/home/me/{key}" for key in settings)
        assert all(getattr(config, key) == f"/home/me/{key}" for key in keys)
    assert TaskConfig(train="org/data:~", name="~/x").train == "org/data:~"
    (tmp_path / "c.toml").write_text("[run]\nfolder = '~/a'\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(TrainConfig, "~/c.toml").run.folder == f"{tmp_path}/a"


@pytest.mark.parametrize("cls", [TrainConfig, WarmupConfig, EvalConfig])
def test_saved_config_reads_back_equal(cls, tmp_path):
    path = tmp_path / "config.toml"
    config = cls(model=ModelConfig(path='odd "path" \\ here'))
    path.write_text(to_toml(config))
    assert load_config(cls, path) == config


def test_preset_fixes_the_authors_semantics():
    algorithm = checked({"algorithm": {"preset": "paper-code"}}).algorithm
    assert chosen(algorithm, SURROGATES, algorithm.surrogate) == PpoClip(low=0.2, high=0.2, dual=0.0)
    assert algorithm.reduction == "micro-batch-mean" and algorithm.minibatch_cut == "after-dropping"


def test_each_choice_has_its_own_settings():
    algorithm = checked({"algorithm": {"w_reinforce": {"positive_weight": 0.3}}}).algorithm
    assert chosen(algorithm, OBJECTIVES, "w-reinforce") == WReinforce(positive_weight=0.3)
    assert chosen(algorithm, OBJECTIVES, "grpo") == Grpo()


@dataclass(frozen=True)
class PpoClipOfAnObjective:
    margin: float = 0.0


def test_a_registered_class_with_settings_gets_a_section_and_no_two_share_one():
    sections = make_sections({"margin-of-2": PpoClipOfAnObjective, "plain": Grpo})
    assert sections().margin_of_2 == PpoClipOfAnObjective() and not hasattr(sections(), "plain")
    with pytest.raises(
        ValueError, match=r"\[algorithm\.ppo_clip\] would hold .* PpoClipOfAnObjective and PpoClip: rename"
    ):
        make_sections({"ppo-clip": PpoClipOfAnObjective}, SURROGATES)
    own = set(AlgorithmConfig.__annotations__)
    assert not own & set(AlgorithmConfig.__base__.__annotations__), "a setting would hide a section"


def test_old_keys_are_all_named_with_what_they_are_called_now(tmp_path):
    path = tmp_path / "config.toml"
    values = "".join(f"{name.partition('.')[2]} = 1\n" for name in RENAMED)
    path.write_text(f"[algorithm]\nobjective = 'nsr'\n{values}")
    for cls in (TrainConfig, EvalConfig):
        with pytest.raises(ValueError, match=r"config\.toml: settings to rename") as error:
            load_config(cls, path)
        assert all(f"{old} is now {new}" in str(error.value) for old, new in RENAMED.items())
    known = {name for name, _, _ in settings_of(TrainConfig())}
    assert set(RENAMED.values()) <= known and not set(RENAMED) & known
    path.write_text("[algorithm.importance]\ncap = 3.0\n")
    assert load_config(TrainConfig, path).algorithm.importance.cap == 3.0


def test_the_reference_in_the_docs_is_current():
    path = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
    text = reference()
    assert path.read_text(encoding="utf-8") == text, "make it again: fastrl settings > docs/settings.md"
    names = [name.rpartition(".") for name, _, _ in settings_of(TrainConfig())]
    assert all(line.partition("): ")[2] for line in text.splitlines() if line.startswith("- ")), "no meaning"
    assert all(f"### `[{section}]`" in text and f"- `{key} = " in text for section, _, key in names)


def test_an_evaluation_takes_a_training_config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[model]\npath = 'm'\n[algorithm]\ncorrect_threshold = 0.5\n[evaluation]\nnum_samples = 7\n")
    config = load_config(EvalConfig, path)
    assert (config.model.path, config.correct_threshold, config.evaluation.num_samples) == ("m", 0.5, 7)
    assert config.truncated == "wrong"
    path.write_text("[model]\npath = 'm'\n[algorithm]\ntruncated = 'mask'\n")
    assert load_config(EvalConfig, path).truncated == "judged"


def test_evaluation_and_warmup_are_checked_too():
    with pytest.raises(ValueError, match=r"output must end in \.json \(its plot lies beside it\), got ev\.png"):
        check_eval(EvalConfig(model=ModelConfig("m"), output="ev.png"))
    with pytest.raises(ValueError, match=r"evaluation\.repetition_penalty must be above 0, got 0"):
        check_eval(from_dict(EvalConfig, MODEL | {"evaluation": {"repetition_penalty": 0.0}}))
    with pytest.raises(ValueError, match=r"data\.batch_size must be at least 1, got 0"):
        check_warmup(from_dict(WarmupConfig, {"data": {"batch_size": 0}}))
    with pytest.raises(ValueError, match=r"optimizer\.offload must be false, got true"):
        check_warmup(from_dict(WarmupConfig, {"optimizer": {"offload": True}}))


def test_several_ranks_score_together():
    unscored = checked({"run": {"scored_rollouts": 0}})
    check_ranks(unscored, 1)
    with pytest.raises(ValueError, match=r"2 ranks: .* run\.scored_rollouts must be at least 1, not 0"):
        check_ranks(unscored, 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_starts_from_a_model_that_is_there_or_that_another_one_makes(path):
    if path.stem.endswith("-warmup"):
        check_warmup(load_config(WarmupConfig, path))
        return
    config = load_config(TrainConfig, path)
    if not config.model.path:  # given with the command
        config = with_settings(config, {"model.path": "models/countdown"})
    check_train(config)
    made = [load_config(WarmupConfig, other).output for other in CONFIGS if other.stem.endswith("-warmup")]
    assert config.model.path in made or (ROOT / config.model.path).is_dir()
    folders = [load_config(TrainConfig, other).run.folder for other in CONFIGS if not other.stem.endswith("-warmup")]
    assert folders.count(config.run.folder) == 1


def test_replacing_a_section_keeps_the_rest():
    config = replace(checked({}), batch=BatchConfig(2, 2, 500))
    assert check_train(config).batch.prompts_per_step == 2


def test_checking_a_config_loads_no_torch():
    code = (
        "import sys; from fastrl.config.files import from_dict; from fastrl.config.checks import check_train;"
        "from fastrl.config.schema import TrainConfig;"
        "import fastrl.cli; check_train(from_dict(TrainConfig, {'model': {'path': 'x'}}));"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
