"""Packed attention: many sequences on one row, each attending to itself alone, through transformers' interface.

A forward with a `layout` is packed. One without (generation, with its cache and masks) runs as in transformers. The
layout is a keyword argument of the forward, so that a recomputation in the backward sees it too. Cost on CPU: about
Σ len², not (Σ len)². Legend: T packed tokens, K keys, H heads, D head size, L length, C count.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_flash_attn_4_available

from fastrl.policy.attention_segments import Layout

PREFIX = "fastrl_"
PACKED_PATHS = ("flash_attention_3", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager")
# transformers acts on names that hold "flash"
SHORT_NAMES = {"flash_attention_3": "fa3", "flash_attention_4": "fa4", "flash_attention_2": "fa2"}
SPAN_NAMES = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
KNOWN_LAYERS = {"full_attention", "sliding_attention"}
MAX_FLASH_HEAD_DIM = 256


@dataclass(frozen=True)
class AttentionChoice:
    """path: one of PACKED_PATHS if is_packed, else an implementation of transformers; None is its own default."""

    path: str | None
    is_packed: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'transformers default'}, {'packed' if self.is_packed else 'padded'} ({self.reason})"


@dataclass(frozen=True)
class Pattern:
    """What a layer asks for. window: a token sees itself and window − 1 tokens before. softcap c: c·tanh(score/c)."""

    layout: Layout
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
        return _with_remark(AttentionChoice(setting, True, "asked for by model.attention"), config)
    obstacles = {path: _obstacle(path, device, dtype, config) for path in PACKED_PATHS}
    path = next(p for p in PACKED_PATHS if not obstacles[p])
    refused = [f"{p}: {obstacles[p]}" for p in PACKED_PATHS[: PACKED_PATHS.index(path)]]
    if device.type == "cpu" and path == "sdpa":
        refused = ["one SDPA call for sequences of similar lengths on CPU"]
    return _with_remark(AttentionChoice(path, True, "; ".join(refused) or "the fastest there is"), config)


def _with_remark(choice: AttentionChoice, config: PreTrainedConfig) -> AttentionChoice:
    """The choice; its reason also says where keys and values are repeated."""
    num_heads = config.num_attention_heads
    is_grouped = (getattr(config, "num_key_value_heads", None) or num_heads) != num_heads
    if choice.path != "varlen" or not is_grouped or _groups_queries(_varlen_attn()):
        return choice
    remark = "this torch's varlen_attn does not group queries: keys and values are repeated"
    return replace(choice, reason=f"{choice.reason}; {remark}")


def _obstacle(path: str, device: torch.device, dtype: torch.dtype, config: PreTrainedConfig) -> str:
    """Why `path` cannot run here; empty if it can."""
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
    if path == "flash_attention_4":
        return "" if is_flash_attn_4_available() else "flash-attn-4 is not installed"
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
    """Route the model's attention through `path`. False for a model that does not follow transformers' interface."""
    name = PREFIX + SHORT_NAMES.get(path, path)
    AttentionInterface.register(name, _FORWARDS[path])
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    return model.config._attn_implementation == name


def packed_arguments(layout: Layout) -> dict[str, object]:
    """Keyword arguments that make a forward packed; the layout must be on the model's device.

    A four-dimensional mask keeps transformers from building one of T² entries.
    """
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.device)
    return {"layout": layout, "attention_mask": mask}


def _attention(attend: Callable[[Tensor, Tensor, Tensor, Pattern], Tensor], *, is_eager: bool) -> Callable:
    """`attend`, which takes and returns (T,H,D) tensors, as a function of transformers' interface.

    `torch.compile` calls it and does not look into it: the segments of a layout would be constants to it.
    """

    @torch.compiler.disable
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
        layout: Layout | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """query (B,Hq,L,D), key and value (B,Hkv,L,D) → (B,L,Hq,D). ValueError for an argument that it cannot serve."""
        unknown = [name for name in ("s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
        if unknown or kwargs.get("dropout"):
            raise ValueError(f"{type(module).__name__} asks for {', '.join(unknown) or 'dropout'} in its attention")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if layout is None:
            if softcap or is_eager:
                is_causal = attention_mask is None and query.shape[2] > 1
                out = eager(query, key, value, attention_mask, scale, softcap, is_causal=is_causal)
                return out.transpose(1, 2).contiguous(), None
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        pattern = Pattern(layout, scale, sliding_window, softcap)
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
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ value


def _by_bucket(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, attend: Callable) -> Tensor:
    """(T,H,D) → (T,H,D): `attend` on each bucket of the layout as (C,H,L,D), with its mask or None for causal."""
    layout = pattern.layout
    prefixes = [_prefixes(t, layout) for t in (key, value)]
    outputs = []
    sizes = [bucket.num_tokens for bucket in layout.buckets]
    for bucket, *parts in zip(layout.buckets, *(t.split(sizes) for t in (query, key, value)), strict=True):
        q, k, v = (bucket.padded(t) for t in parts)
        if bucket.prefixes_C:
            heads = (t[:, : bucket.prefix_length].index_select(0, bucket.prefix_index_C) for t in prefixes)
            k, v = (torch.cat(pair, dim=1) for pair in zip(heads, (k, v), strict=True))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        outputs.append(bucket.unpadded(attend(q, k, v, bucket.mask(pattern.window)).transpose(1, 2)))
    return torch.cat(outputs)


def _prefixes(x: Tensor, layout: Layout) -> Tensor | None:
    """(T,H,D) → (prefixes, their longest, H, D)."""
    bucket = layout.prefix_bucket
    return None if bucket is None else bucket.padded(x[: bucket.num_tokens])


def _sdpa(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    if pattern.softcap:
        raise ValueError("SDPA cannot cap attention scores: set model.attention = 'eager'")

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        is_causal = mask is None
        return scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=pattern.scale, enable_gqa=True)

    return _by_bucket(query, key, value, pattern, attend)


def _eager(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return eager(q, k, v, mask, pattern.scale, pattern.softcap, is_causal=mask is None)

    return _by_bucket(query, key, value, pattern, attend)


def _varlen_attn() -> Callable[..., Tensor]:
    """PyTorch's own flash attention over segments."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@cache
def _groups_queries(varlen_attn: Callable[..., Tensor]) -> bool:
    """Whether this function takes fewer heads of keys than of queries: torch's does from 2.12 on."""
    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _varlen(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    """`varlen_attn`. A window of (left, 0) is causal, aligned at the ends."""
    if pattern.softcap:
        raise ValueError("torch's varlen_attn cannot cap attention scores: set model.attention = 'eager'")
    left = -1 if pattern.window is None else pattern.window - 1
    varlen_attn, settings = _varlen_attn(), {"scale": pattern.scale, "window_size": (left, 0)}
    key, value = _seen(key, value, pattern.layout)
    if _groups_queries(varlen_attn):
        settings["enable_gqa"] = True
    else:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    return varlen_attn(*(t.contiguous() for t in (query, key, value)), *_spans(pattern.layout), **settings)


def _seen(key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """(T,H,D) → (K,H,D): keys and values of one segment after the other, each behind those of its prefix."""
    places_K = layout.key_places_K
    return (key, value) if places_K is None else (key.index_select(0, places_K), value.index_select(0, places_K))


def _spans(layout: Layout) -> tuple[Tensor, Tensor, int, int]:
    """What every flash kernel wants: starts of queries and of keys, (S+1,) int32, and the longest of each."""
    return layout.query_starts, layout.key_starts, *layout.longest


def _kernel(version: int) -> Callable[..., Any]:
    """flash-attn's function for packed sequences, by its major version."""
    if version == 4:
        from flash_attn.cute import flash_attn_varlen_func
    elif version == 3:
        from flash_attn_interface import flash_attn_varlen_func
    else:
        from flash_attn import flash_attn_varlen_func
    return flash_attn_varlen_func


def _flash(version: int) -> Callable[[Tensor, Tensor, Tensor, Pattern], Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
        everywhere = None if version == 4 else -1
        output = _kernel(version)(
            query,
            *_seen(key, value, pattern.layout),
            **dict(zip(SPAN_NAMES, _spans(pattern.layout), strict=True)),
            softmax_scale=pattern.scale,
            causal=True,
            window_size=(everywhere, everywhere) if pattern.window is None else (pattern.window - 1, 0),
            softcap=pattern.softcap or 0.0,
        )
        return output[0] if isinstance(output, tuple) else output  # 3 and 4 may return the log-sum-exp too

    return attend


_FORWARDS = {
    "flash_attention_3": _attention(_flash(3), is_eager=False),
    "flash_attention_4": _attention(_flash(4), is_eager=False),
    "flash_attention_2": _attention(_flash(2), is_eager=False),
    "varlen": _attention(_varlen, is_eager=False),
    "sdpa": _attention(_sdpa, is_eager=False),
    "eager": _attention(_eager, is_eager=True),
}
