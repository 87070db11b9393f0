"""Loading a policy's parts from a Hugging Face folder or hub id; what is not sound is refused with one message."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastrl.config.schema import ModelConfig
from fastrl.policy.attention import choose_attention
from fastrl.policy.layer_norm import sum_layer_norms_in_float32
from fastrl.policy.lora import base_path, is_adapter_folder, load_adapters
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.soundness import check_head, pack

# One of them holds a tokenizer's vocabulary; without any transformers makes up an empty tokenizer of the model's type.
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "*.py")


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
    folder = Path(path).expanduser()
    if folder.is_dir() and not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise ValueError(
            f"no tokenizer can be loaded from model.path = '{path}': it has none of {', '.join(VOCABULARIES)}"
        )
    with _one_message(f"no tokenizer can be loaded from model.path = '{path}'"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{path}' has no eos_token: completions could never stop")
    return tokenizer


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The model's config, without its weights; the base model's where path holds adapters."""
    path = base_path(config.path)
    _check_path(path)
    with _one_message(f"the config of model.path = '{path}' cannot be read"):
        return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def context_of(architecture: PreTrainedConfig) -> int | None:
    """Longest sequence the model was made for, in tokens; None where its config names none."""
    return getattr(architecture.get_text_config(), "max_position_embeddings", None)


@contextmanager
def _one_message(what: str) -> Iterator[None]:
    """Whatever transformers and its parsers raise for a broken folder, as a ValueError of one line."""
    try:
        yield
    except Exception as error:  # it raises any type: OSError, ValueError, KeyError, TypeError, those of Rust parsers
        text = " ".join(str(error).split())
        raise ValueError(f"{what}: {text[:300] or type(error).__name__}") from error


def check_weight_files(config: ModelConfig) -> None:
    """ValueError for a safetensors file of a local folder that is cut off or no such file. Reads headers alone."""
    for path in sorted(Path(base_path(config.path)).expanduser().glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or incomplete: {error}") from error


def load_model(config: ModelConfig, say: Callable[[str], None] = print) -> PreTrainedModel:
    """The causal LM on its device and in its dtype, dropout off, head and packing checked; adapters that path holds."""
    device = resolve_device(config.device)
    architecture = load_architecture(config)
    dtype = resolve_dtype(config.dtype, device)
    choice = choose_attention(config.attention, device, dtype, architecture)
    path = base_path(config.path)
    with _one_message(f"the weights of model.path = '{path}' cannot be loaded"):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            config=architecture,
            dtype=dtype,
            attn_implementation=None if choice.is_packed else choice.path,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    _check_complete(path, found)
    model = model.to(device).eval()
    sum_layer_norms_in_float32(model)
    say(f"attention: {pack(model, choice) if choice.is_packed else choice}")
    check_head(model)
    _make_savable(model)
    if is_adapter_folder(config.path):
        load_adapters(model, config.path)
    if config.gradient_checkpointing:
        say(f"activation checkpointing: {recompute_blocks(model)} blocks")
    return model


def _check_complete(path: str, found: dict) -> None:
    """ValueError for parameters that the files lack, which would be random, or have in another shape."""
    missing, mismatched = sorted(found["missing_keys"]), sorted(map(str, found.get("mismatched_keys", ())))
    if missing or mismatched:
        what = f"{len(missing)} parameters are missing, such as {missing[0]}" if missing else f"shapes: {mismatched[0]}"
        raise ValueError(f"model.path = '{path}' does not hold the weights that its config asks for: {what}")


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
