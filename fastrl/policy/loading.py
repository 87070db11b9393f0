"""Loading a model's weights from a Hugging Face folder or hub id. What is not sound is refused with one message."""

import warnings
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fastrl.policy.attention import choose_attention
from fastrl.policy.compiled import compile_blocks, wants_compiled
from fastrl.policy.layer_norm import sum_layer_norms_in_float32
from fastrl.policy.lora import is_adapter_folder, load_adapters
from fastrl.policy.pretrained import Pretrained, one_message
from fastrl.policy.recompute import recompute_blocks
from fastrl.policy.rms_norm import keep_norm_inputs
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


def load_model(source: Pretrained, say: Callable[[str], None] = print) -> PreTrainedModel:
    """The causal LM on its device and in its dtype, without dropout, its head and its packing checked.

    A folder of adapters gives the base model with these adapters. say: takes what was chosen, a line at a time.
    """
    settings = source.settings
    device = resolve_device(settings.device)
    choice = choose_attention(settings.attention, device, resolve_dtype(settings.dtype, device), source.architecture)
    model = _with_weights(source, device, None if choice.is_packed else choice.path)
    sum_layer_norms_in_float32(model)
    keep_norm_inputs(model)
    say(f"attention: {pack(model, choice) if choice.is_packed else choice}")
    check_head(model)
    _make_savable(model)
    if is_adapter_folder(settings.path):
        load_adapters(model, settings.path)
    return model


def load_for_training(
    source: Pretrained, say: Callable[[str], None] = print, adapt: Callable[[PreTrainedModel], str] | None = None
) -> PreTrainedModel:
    """`load_model`; then `adapt`, which says what it did, and blocks compiled and recomputed as the settings say."""
    model, settings = load_model(source, say), source.settings
    if adapt:
        say(adapt(model))
    if wants_compiled(settings.compile, model.device):
        say(f"blocks: {compile_blocks(model, is_required=settings.compile is True)}")
    if settings.gradient_checkpointing:
        say(f"activation checkpointing: {recompute_blocks(model)} blocks")
    return model


def _with_weights(source: Pretrained, device: torch.device, attention: str | None) -> PreTrainedModel:
    """attention: one of transformers' implementations; None: its own default."""
    with one_message(f"the weights of model.path = '{source.path}' cannot be loaded"):
        model, found = AutoModelForCausalLM.from_pretrained(
            source.path,
            config=source.architecture,
            dtype=resolve_dtype(source.settings.dtype, device),
            attn_implementation=attention,
            trust_remote_code=source.settings.trust_remote_code,
            output_loading_info=True,
        )
    _check_complete(source.path, found)
    return model.to(device).eval()


def _check_complete(path: str, found: dict) -> None:
    """ValueError for parameters that the files lack or hold in another shape: they would be random."""
    missing, mismatched = sorted(found["missing_keys"]), sorted(map(str, found.get("mismatched_keys", ())))
    if missing or mismatched:
        what = f"{len(missing)} parameters are missing, such as {missing[0]}" if missing else f"shapes: {mismatched[0]}"
        raise ValueError(f"model.path = '{path}' does not hold the weights that its config asks for: {what}")


def _make_savable(model: PreTrainedModel) -> None:
    """transformers refuses to save some generation configs that it loads: a temperature beside greedy decoding."""
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
    """Sorted end-of-sequence ids of the tokenizer and of the model's generation config (chat models: end of turn)."""
    from_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = from_model if isinstance(from_model, list) else [from_model]
    return sorted({tokenizer.eos_token_id, *(i for i in ids if i is not None)})
