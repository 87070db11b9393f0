"""Loading a policy's parts from a Hugging Face folder or hub id, each refused with one message where it is not sound."""

import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastrl.config import ModelConfig
from fastrl.policy.attention import choose_attention
from fastrl.policy.lora import base_path, is_adapter_folder, load_adapters
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.soundness import check_head, pack


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda where there is one. ValueError for cuda without a device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device = 'cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


@cache
def _check_path(path: str) -> None:
    """A path that looks local must hold a model; anything else is taken for a hub id, which is said once."""
    is_local = Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_local and not (Path(path).expanduser() / "config.json").is_file():
        raise FileNotFoundError(
            f"model.path = '{path}': no config.json there; a Hugging Face folder or hub id is needed"
        )
    if not is_local:
        print(f"model.path = '{path}' is no folder in {Path.cwd()}: taking it for a hub id", file=sys.stderr)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, the base model's where path holds adapters. ValueError when it has no end-of-sequence token."""
    path = base_path(config.path)
    _check_path(path)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{path}' has no eos_token: completions could never stop")
    return tokenizer


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The model's config, without its weights; the base model's where path holds adapters."""
    path = base_path(config.path)
    _check_path(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def max_context(config: ModelConfig) -> int | None:
    """Longest sequence the model was made for, in tokens, from its config alone; None where it names none."""
    return getattr(load_architecture(config).get_text_config(), "max_position_embeddings", None)


def load_model(config: ModelConfig, say: Callable[[str], None] = print) -> PreTrainedModel:
    """The causal LM on its device and in its dtype, dropout off, head and packing checked; adapters that path holds."""
    device = resolve_device(config.device)
    architecture = load_architecture(config)
    dtype = resolve_dtype(config.dtype, device)
    choice = choose_attention(config.attention, device, dtype, architecture)
    model = AutoModelForCausalLM.from_pretrained(
        base_path(config.path),
        config=architecture,
        dtype=dtype,
        attn_implementation=None if choice.is_packed else choice.path,
        trust_remote_code=config.trust_remote_code,
    )
    model = model.to(device).eval()
    say(f"attention: {pack(model, choice) if choice.is_packed else choice}")
    check_head(model)
    _make_savable(model)
    if is_adapter_folder(config.path):
        load_adapters(model, config.path)
    if config.gradient_checkpointing:
        say(f"activation checkpointing: {recompute_blocks(model)} blocks")
    return model


def _make_savable(model: PreTrainedModel) -> None:
    """transformers refuses to save some generation configs that it loads (temperature beside greedy decoding)."""
    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError as error:
        warnings.warn(
            f"the model's generation_config is not valid and is reset but for its stop tokens: {error}", stacklevel=3
        )
        model.generation_config = GenerationConfig(
            eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, bos_token_id=own.bos_token_id
        )


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End-of-sequence ids of the tokenizer and of the model's generation config (chat models stop at end-of-turn)."""
    from_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = from_model if isinstance(from_model, list) else [from_model]
    return sorted({tokenizer.eos_token_id, *(i for i in ids if i is not None)})
