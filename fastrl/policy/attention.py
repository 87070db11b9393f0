"""Packed attention: many sequences on one row, each attending to itself alone, through transformers' interface.

A forward that is given `sequence_lengths` is packed; one without (generation, with its cache and masks) is computed
as transformers would. Lengths travel as keyword arguments of the forward, so that a recomputation in the backward sees
them too. Cost on CPU: Σ len², not (Σ len)². Legend: T packed tokens, H heads, D head size, L length, C count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

PREFIX = "fastrl_"
PACKED_PATHS = ("flash_attention_3", "flash_attention_2", "varlen", "sdpa", "eager")
SHORT_NAMES = {"flash_attention_3": "fa3", "flash_attention_2": "fa2"}  # transformers acts on names that hold "flash"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
MAX_FLASH_HEAD_DIM = 256


@dataclass(frozen=True)
class AttentionChoice:
    """path: one of PACKED_PATHS when is_packed, else a transformers implementation (None: its own default)."""

    path: str | None
    is_packed: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'transformers default'}, {'packed' if self.is_packed else 'padded'} ({self.reason})"


@dataclass(frozen=True)
class Pattern:
    """What a layer asks for. window: a token sees itself and window − 1 before it; softcap: c·tanh(score/c)."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    scale: float
    window: int | None
    softcap: float | None


def choose_attention(
    setting: str, device: torch.device, dtype: torch.dtype, architecture: PreTrainedConfig
) -> AttentionChoice:
    """Which attention runs, and why. ValueError for a packed path that this machine or model cannot run."""
    config = architecture.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS)
    if setting not in ("auto", *PACKED_PATHS):
        return AttentionChoice(setting, False, "asked for by model.attention; it has no packed form here")
    if odd:
        path = None if setting == "auto" else setting
        return AttentionChoice(path, False, f"{config.model_type} has layers of type {', '.join(odd)}")
    if setting != "auto":
        if problem := _obstacle(setting, device, dtype, config):
            raise ValueError(f"model.attention = '{setting}' cannot run: {problem}")
        return AttentionChoice(setting, True, "asked for by model.attention")
    obstacles = {path: _obstacle(path, device, dtype, config) for path in PACKED_PATHS}
    path = next(p for p in PACKED_PATHS if not obstacles[p])
    refused = [f"{p}: {obstacles[p]}" for p in PACKED_PATHS[: PACKED_PATHS.index(path)]]
    if device.type == "cpu" and path == "sdpa":
        refused = ["one SDPA call per sequence length on CPU"]
    return AttentionChoice(path, True, "; ".join(refused) or "the fastest there is")


def _obstacle(path: str, device: torch.device, dtype: torch.dtype, config: PreTrainedConfig) -> str:
    """Why `path` cannot run here; empty where it can."""
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap and path in ("varlen", "sdpa"):
        return f"it cannot cap attention scores, {config.model_type} caps them at {softcap:g}"
    if path in ("sdpa", "eager"):
        return ""
    if device.type != "cuda":
        return "it needs a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 weights, not {dtype}"
    if head_dim(config) > MAX_FLASH_HEAD_DIM or getattr(config, "v_head_dim", None):
        return f"heads of size {head_dim(config)}, or keys and values of different sizes"
    if path == "flash_attention_3":
        return "" if is_flash_attn_3_available() else "flash-attn 3 is not installed"
    if path == "flash_attention_2":
        return "" if is_flash_attn_2_available() else "flash-attn is not installed"
    is_old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)
    return "it needs compute capability 8.0" if is_old else ""


def head_dim(config: PreTrainedConfig) -> int:
    """Size of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def is_packed(model: PreTrainedModel) -> bool:
    """Whether the model's forward takes packed sequences."""
    return (model.config._attn_implementation or "").startswith(PREFIX)


def use_packed_attention(model: PreTrainedModel, path: str) -> bool:
    """Route the model's attention through `path`; False where it does not follow transformers' interface."""
    name = PREFIX + SHORT_NAMES.get(path, path)
    AttentionInterface.register(name, _FORWARDS[path])
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    return model.config._attn_implementation == name


def packed_arguments(lengths: tuple[int, ...], cu_seqlens: Tensor) -> dict[str, object]:
    """Keyword arguments that make a forward packed. A four-dimensional mask stops transformers from building one of T².

    cu_seqlens (S+1,) int32 on the model's device: where each sequence starts, and where the last ends.
    """
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=cu_seqlens.device)
    return {"sequence_lengths": lengths, "sequence_starts": cu_seqlens, "attention_mask": mask}


def cumulative(lengths: tuple[int, ...]) -> Tensor:
    """(S+1,) int32 starts of the sequences, and the end of the last."""
    return pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def _attention(attend: Callable[[Tensor, Tensor, Tensor, Pattern], Tensor], *, is_eager: bool) -> Callable:
    """A function for transformers' interface around `attend`, which takes (T,H,D) tensors and returns (T,H,D)."""

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sequence_lengths: tuple[int, ...] | None = None,
        sequence_starts: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """query (B,Hq,L,D), key and value (B,Hkv,L,D) → (B,L,Hq,D). ValueError for what it would have to ignore."""
        unknown = [name for name in ("s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
        if unknown or kwargs.get("dropout"):
            raise ValueError(f"{type(module).__name__} asks for {', '.join(unknown) or 'dropout'} in its attention")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if sequence_lengths is None:
            if softcap or is_eager:
                is_causal = attention_mask is None and query.shape[2] > 1
                out = eager(query, key, value, attention_mask, scale, softcap, is_causal=is_causal)
                return out.transpose(1, 2).contiguous(), None
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        pattern = Pattern(sequence_lengths, sequence_starts, scale, sliding_window, softcap)
        return attend(*(t.squeeze(0).transpose(0, 1) for t in (query, key, value)), pattern).unsqueeze(0), None

    return forward


def eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    *,
    is_causal: bool,
) -> Tensor:
    """softmax(cap(q·kᵀ·scale) where mask)·v in plain PyTorch; (C,Hq,L,D), softmax in fp32. mask: True may be seen."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if is_causal:
        mask = _window_mask(query.shape[2], None, query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """(L,L) bool: row t sees columns t − window + 1 … t."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _by_length(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, attend: Callable) -> Tensor:
    """`attend` on each run of equal lengths at once, as (C,H,L,D); in and out (T,H,D)."""
    runs = [(length, len(list(group))) for length, group in groupby(pattern.lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    for (length, count), *parts in zip(runs, *(t.split(sizes) for t in (query, key, value)), strict=True):
        q, k, v = (t.reshape(count, length, *t.shape[1:]).transpose(1, 2) for t in parts)
        outputs.append(attend(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    if pattern.softcap:
        raise ValueError("SDPA cannot cap attention scores: set model.attention = 'eager'")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if pattern.window is None or pattern.window >= q.shape[2]:
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=pattern.scale, enable_gqa=True)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        mask = _window_mask(q.shape[2], pattern.window, q.device)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=pattern.scale)

    return _by_length(query, key, value, pattern, attend)


def _eager(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _window_mask(q.shape[2], pattern.window, q.device)
        return eager(q, k, v, mask, pattern.scale, pattern.softcap, is_causal=False)

    return _by_length(query, key, value, pattern, attend)


def _varlen(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    """PyTorch's own flash attention over cu_seqlens. A window of (left, 0) is causal."""
    from torch.nn.attention.varlen import varlen_attn

    if pattern.softcap:
        raise ValueError("torch's varlen_attn cannot cap attention scores: set model.attention = 'eager'")
    starts, longest = pattern.cu_seqlens, max(pattern.lengths)
    left = -1 if pattern.window is None else pattern.window - 1
    tensors = (t.contiguous() for t in (query, key, value))
    return varlen_attn(
        *tensors, starts, starts, longest, longest, scale=pattern.scale, window_size=(left, 0), enable_gqa=True
    )


def _flash(version: int) -> Callable[[Tensor, Tensor, Tensor, Pattern], Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
        if version == 3:
            from flash_attn_interface import flash_attn_varlen_func
        else:
            from flash_attn import flash_attn_varlen_func
        starts, longest = pattern.cu_seqlens, max(pattern.lengths)
        output = flash_attn_varlen_func(
            *(query, key, value, starts, starts, longest, longest),
            softmax_scale=pattern.scale,
            causal=True,
            window_size=(-1, -1) if pattern.window is None else (pattern.window - 1, 0),
            softcap=pattern.softcap or 0.0,
        )
        return output[0] if isinstance(output, tuple) else output  # flash-attn 3 returns the log-sum-exp too

    return attend


_FORWARDS = {
    "flash_attention_3": _attention(_flash(3), is_eager=False),
    "flash_attention_2": _attention(_flash(2), is_eager=False),
    "varlen": _attention(_varlen, is_eager=False),
    "sdpa": _attention(_sdpa, is_eager=False),
    "eager": _attention(_eager, is_eager=True),
}
