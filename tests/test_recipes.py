"""Recipes for pretrained models: their heads and docs/recipes.md say what `fastrl plan` predicts from shapes."""

import copy
from pathlib import Path

import pytest
import recipes
import torch
from recipe_models import MODELS
from transformers import AutoModelForCausalLM

from fastrl.config.checks import check_train
from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig

NAMES = [path.stem for path in recipes.recipes()]
MILLIONS = {  # in the model cards, or counted in the published weights
    "Qwen/Qwen3-0.6B": 596,
    "Qwen/Qwen3-1.7B": 1721,
    "Qwen/Qwen3-4B": 4022,
    "Qwen/Qwen2.5-Math-1.5B": 1544,
    "Qwen/Qwen2.5-Math-7B": 7616,
    "meta-llama/Llama-3.2-3B-Instruct": 3213,
    "google/gemma-3-1b-it": 1000,
}


def config_of(name: str) -> TrainConfig:
    return load_config(TrainConfig, recipes.FOLDER / f"{name}.toml")


@pytest.mark.parametrize("name", MODELS)
def test_shapes_make_as_many_parameters_as_the_published_model_has(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MODELS[name])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.6)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_run_and_says_what_it_takes(name):
    config = config_of(name)
    check_train(config)
    context = MODELS[config.model.path].max_position_embeddings
    assert config.task.max_prompt_tokens + config.sampler.max_new_tokens <= context
    assert config.run.folder == f"runs/{name}" and name.split("-paper")[0].endswith(config.algorithm.objective)
    text = (recipes.FOLDER / f"{name}.toml").read_text()
    said = recipes.shown(text)
    assert list(said)[:3] == ["24 GB", "40 GB", "80 GB"] and len(recipes.described(text)) >= 1
    assert ("8 × 80 GB" in said) == said["80 GB"].startswith("needs")
    assert max(map(len, text.splitlines())) <= 130


def test_the_paper_is_followed_where_a_recipe_says_so():
    """Settings of arXiv:2506.01347: 1024 prompts × 8, four updates, lr 1e-6, T = 1, prompt and response fill 4096."""
    config = config_of("qwen2.5-math-7b-math-nsr-paper")
    assert (config.batch.prompts_per_step, config.batch.rollouts_per_prompt) == (1024, 8)
    assert (config.optimizer.lr, config.algorithm.updates_per_batch, config.sampler.temperature) == (1e-6, 4, 1.0)
    assert config.task.max_prompt_tokens + config.sampler.max_new_tokens == 4096
    applied = check_train(config).algorithm
    assert (applied.ppo_clip.low, applied.ppo_clip.high, applied.kl_coef, applied.entropy_coef) == (0.2, 0.2, 0, 1e-4)
    assert config_of("qwen2.5-math-7b-math-grpo-paper").algorithm.kl_coef == 1e-3
    assert config_of("qwen2.5-math-7b-math-w-reinforce-paper").algorithm.w_reinforce.positive_weight == 0.1


def test_the_page_is_made_from_the_recipes():
    page = (recipes.ROOT / "docs" / "recipes.md").read_text()
    assert page == recipes.page() and all(f"configs/recipes/{name}.toml" in page for name in NAMES)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_what_plan_predicts(name):
    text = (recipes.FOLDER / f"{name}.toml").read_text()
    assert recipes.with_predictions(text, recipes.predictions(config_of(name))) == text


@pytest.fixture
def two_blocks(monkeypatch) -> TrainConfig:
    """A recipe whose model has two blocks, so that it is planned in a moment."""
    config = config_of("qwen3-0.6b-gsm8k-nsr")
    small = copy.deepcopy(MODELS[config.model.path])
    small.num_hidden_layers, small.layer_types = 2, small.layer_types[:2]
    monkeypatch.setitem(MODELS, config.model.path, small)
    return config


@pytest.mark.vllm
def test_a_plan_moved_to_another_card_is_the_plan_of_that_card(two_blocks, tmp_path: Path):
    config = recipes.shaped(two_blocks, str(tmp_path))
    everything = recipes.plan_of(config)
    for memory_gib in (10.5, 23.6):  # vLLM's cache is cut, and as large as it can be
        moved, planned = recipes.on_card(everything, memory_gib), recipes.plan_of(config, memory_gib)
        assert (moved.plan.peak, moved.plan.kv_cache, moved.fits) == (planned.peak, planned.kv_cache, planned.fits)
        assert min(moved.num_held, config.sampler.batch_size) == planned.work.config.sampler.batch_size
    assert not recipes.on_card(everything, 4.0).fits


@pytest.mark.vllm
def test_lines_name_the_first_saving_that_does(two_blocks, monkeypatch):
    monkeypatch.setattr(recipes, "CARDS", {8: 8.0, 80: 79.2})
    small, large = recipes.predictions(two_blocks)
    assert small.startswith('# 8 GB: needs optimizer.kind = "adamw-8bit", optimizer.grad_dtype = "bfloat16": ')
    assert large.startswith("# 80 GB: fits, ") and large.endswith(" of 79.2, 256 sequences at once")
