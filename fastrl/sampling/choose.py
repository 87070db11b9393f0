"""Which sampler runs, and why: one chooser, which `fastrl doctor` can ask too."""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastrl.config.schema import SamplerConfig
from fastrl.policy.loading import stop_token_ids
from fastrl.policy.lora import adapters
from fastrl.policy.model import Policy
from fastrl.policy.sharding import whole
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.engine import Engine, EngineSettings
from fastrl.sampling.kv_budget import kv_cache_bytes
from fastrl.sampling.protocol import Sampler
from fastrl.sampling.vllm import VllmSampler
from fastrl.sampling.weights.choose import share_weights


def choose_sampler(config: SamplerConfig, device: torch.device) -> tuple[str, str]:
    """(kind, reason). ValueError when vLLM is asked for and not installed."""
    is_installed = importlib.util.find_spec("vllm") is not None
    if config.kind == "vllm" and not is_installed:
        raise ValueError("sampler.kind = 'vllm', but vLLM is not installed: pip install 'fastrl[vllm]'")
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
    """Sampling settings of the model's own generation config that differ from plain sampling: none of them is used."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    own = {name: getattr(model.generation_config, name, None) for name in neutral}
    return {name: value for name, value in own.items() if value is not None and value != neutral[name]}


def build_sampler(
    config: SamplerConfig,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_sequence_tokens: int,
    training_bytes: int = 0,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> Sampler:
    """The sampler that `choose_sampler` names, over the model that is trained. Build it before the optimizer.

    max_sequence_tokens: prompt and completion of the longest sequence to come. training_bytes: what training will keep
    besides the weights. ValueError when vLLM cannot serve that.
    """
    model = policy.model
    kind, reason = choose_sampler(config, policy.device)
    say(f"sampler: {kind} ({reason})")
    stops = stop_token_ids(model, tokenizer)
    if kind == "embedded":
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return EmbeddedSampler(
            model, stop_token_ids=stops, pad_token_id=pad, batch_size=config.batch_size, whole=partial(whole, policy)
        )
    added = adapters(model)
    settings = EngineSettings(
        path=model.name_or_path,
        dtype=policy.dtype,
        max_sequence_tokens=max_sequence_tokens,
        max_num_sequences=config.batch_size,
        kv_cache_bytes=kv_cache_bytes(policy, config, max_sequence_tokens, training_bytes),
        trust_remote_code=trust_remote_code,
        lora_rank=max((len(a.A) for a in added.values()), default=0),
        lora_targets=tuple(sorted({name.rpartition(".")[2] for name in added})),
        can_release_kv_cache=config.release_kv_cache,
    )
    engine = Engine(settings)
    try:
        weights = share_weights(config.weights, engine, model, say, root=policy)
    except ValueError:
        engine.close()
        raise
    return VllmSampler(engine, weights, stop_token_ids=stops)
