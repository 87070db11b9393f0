"""Fixtures: tiny random models and a saved countdown model, made on the spot."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from fastrl.config import ScratchConfig
from fastrl.policy.scratch import scratch_model, scratch_tokenizer


@pytest.fixture
def tiny_model() -> Qwen3ForCausalLM:
    """Random Qwen3 with an untied head, V = 1500, logits far from uniform."""
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
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).float().eval()
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
