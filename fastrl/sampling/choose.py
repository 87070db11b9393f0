"""Chooses the sampler and says why; `fastrl doctor` and `fastrl plan` ask, too."""

import importlib
import importlib.util

import torch
from transformers import PreTrainedModel

from fastrl.config.annotations import nearest
from fastrl.config.schema import SamplerConfig
from fastrl.sampling.protocol import Sampler, SamplerParts

# Name → module:function that makes it from `SamplerParts`; imported when it is chosen.
SAMPLERS = {
    "embedded": "fastrl.sampling.embedded:make_embedded",
    "vllm": "fastrl.sampling.vllm_sampler:make_vllm",
}


def choose_sampler(config: SamplerConfig, device: torch.device, *, is_here: bool = True) -> tuple[str, str]:
    """(kind, reason). is_here: on this machine; on another vLLM is taken to be installed.

    ValueError for an unknown kind, when vLLM is asked for and not installed, and for settings that the kind or the
    device cannot honour.
    """
    kind, reason = _chosen(config, device, not is_here or importlib.util.find_spec("vllm") is not None)
    if kind == "embedded":
        _check_embedded(config)
    elif config.kv_cache_dtype == "fp8":
        _check_fp8(device)
    return kind, reason


def _check_embedded(config: SamplerConfig) -> None:
    if config.kv_cache_dtype != "auto":
        raise ValueError(
            f"sampler.kv_cache_dtype = '{config.kv_cache_dtype}' needs the vllm sampler; the embedded one, which runs "
            "here, keeps keys and values in the weights' dtype: leave it 'auto'"
        )
    if not config.batch_size:
        raise ValueError("sampler.batch_size = 0 (as many as the KV cache holds) needs the vllm sampler: give a number")


def _check_fp8(device: torch.device) -> None:
    if device.type == "cpu" and not torch.cpu._is_avx512_supported():
        raise ValueError("sampler.kv_cache_dtype = 'fp8' needs AVX-512 on a CPU, which this one lacks: leave it 'auto'")
    if device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(
            f"sampler.kv_cache_dtype = 'fp8' needs a GPU that computes in fp8 (compute capability 8.9 or more), "
            f"{torch.cuda.get_device_name(device)} does not: leave it 'auto'"
        )


def _chosen(config: SamplerConfig, device: torch.device, is_installed: bool) -> tuple[str, str]:
    if config.kind not in ("auto", *SAMPLERS):
        raise ValueError(f"sampler.kind = '{config.kind}' is unknown{nearest(config.kind, ['auto', *SAMPLERS])}")
    if config.kind == "vllm" and not is_installed:
        raise ValueError("sampler.kind = 'vllm', but vLLM is not installed: pip install '.[vllm]' in fastrl's clone")
    if config.release_kv_cache and device.type != "cuda":
        raise ValueError("sampler.release_kv_cache = true needs vLLM on a CUDA device; on the CPU it stays")
    if config.kind != "auto":
        return config.kind, "asked for by sampler.kind"
    if not is_installed:
        return "embedded", "vLLM is not installed"
    if device.type != "cuda":
        return (
            "embedded",
            "no CUDA device: model.generate is the quicker one for small models; sampler.kind = 'vllm' works",
        )
    return "vllm", "CUDA device and vLLM found"


def ignored_settings(model: PreTrainedModel) -> dict[str, float]:
    """Settings of the model's own generation config that differ from plain sampling. They are ignored."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    own = {name: getattr(model.generation_config, name, None) for name in neutral}
    return {name: value for name, value in own.items() if value is not None and value != neutral[name]}


def build_sampler(parts: SamplerParts) -> Sampler:
    """The sampler that `choose_sampler` names. Build it before the optimizer, because it may move the parameters."""
    kind, reason = choose_sampler(parts.config, parts.policy.device)
    parts.say(f"sampler: {kind} ({reason})")
    module, _, function = SAMPLERS[kind].partition(":")
    return getattr(importlib.import_module(module), function)(parts)
