"""Fixtures: tiny random models and a saved countdown model, made on the spot."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import local_hub
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from fastrl.config.schema import ScratchConfig
from fastrl.policy.attention import use_packed_attention
from fastrl.policy.scratch import scratch_model, scratch_tokenizer

SHAPE = {
    "vocab_size": 517,  # vLLM pads it to 576
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 640,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen2.5": Qwen2Config(**SHAPE | {"hidden_size": 128}, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=False),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "mistral": MistralConfig(**SHAPE, tie_word_embeddings=True, sliding_window=None),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2),
    "gpt2": GPT2Config(vocab_size=517, n_embd=64, n_layer=2, n_head=2, n_positions=640, bos_token_id=1, eos_token_id=1),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need vLLM say so when it is missing, instead of failing at an import."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory) -> Callable[[str], Path]:
    """family_folder(name): a tiny float32 model of that family with random weights and biases, saved once."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(FAMILIES[name]).float()
                for parameter in model.parameters():
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
            model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def tiny_model() -> Qwen3ForCausalLM:
    """Random Qwen3 with an untied head, V = 1500, logits far from uniform, packed as `load_model` would."""
    config = Qwen3Config(
        vocab_size=1500,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=96,
        tie_word_embeddings=False,
    )
    model = _spread_out(Qwen3ForCausalLM, config)
    assert use_packed_attention(model, "sdpa")
    return model


@pytest.fixture
def sliding_model() -> Gemma3ForCausalLM:
    """Random Gemma-3, V = 1200, with a sliding window of 8 in its first layer."""
    config = Gemma3TextConfig(
        vocab_size=1200,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=96,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _spread_out(Gemma3ForCausalLM, config)


def _spread_out(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Weights so large that the model is far from uniform, always the same."""
    torch.manual_seed(0)
    model = cls(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    return model


@pytest.fixture(scope="session")
def countdown_folder(tmp_path_factory) -> Path:
    """A small random countdown model with its character tokenizer, saved as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    config = ScratchConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a server in the place of the Hugging Face hub."""
    with local_hub.serve() as address:
        yield address
