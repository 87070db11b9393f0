"""A random model of few characters, whose next tokens are not uniform, so that stops and games come up."""

from pathlib import Path

import torch

from fastrl.config.schema import ScratchConfig
from fastrl.policy.scratch import scratch_model, scratch_tokenizer


def save_letter_model(folder: Path, characters: str) -> Path:
    """Write model and tokenizer; returns the folder."""
    config = ScratchConfig(characters=characters, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = scratch_tokenizer(config)
    model = scratch_model(config, tokenizer, seed=0)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
