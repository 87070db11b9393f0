"""How many bytes the KV cache gets when nobody says: as much as the sampler can use, no more than memory allows."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from fastrl.config.schema import SamplerConfig
from fastrl.policy.lora import adapters
from fastrl.policy.model import Policy
from fastrl.policy.sharding import is_sharded
from fastrl.process.memory import device_memory

BLOCK_TOKENS = 128  # the largest KV block of the back-ends in use (CPU); a sequence occupies whole blocks
SLACK_BLOCKS = 2  # per sequence: models that mix window and full attention round up once more
CUDA_BYTES, ENGINE_BYTES = 1 << 30, 2 << 30
MOST_SEQUENCES = 1024  # at once, where sampler.batch_size leaves it to the cache
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters in vLLM


def cache_dtype(config: SamplerConfig, dtype: torch.dtype) -> torch.dtype:
    """Of the keys and values that a sampler keeps of a model in `dtype`."""
    return torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype


def bytes_per_token(model: PreTrainedModel, dtype: torch.dtype | None = None) -> int:
    """Bytes of the keys and values of one token in all layers, in `dtype` (default: the model's)."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * (dtype or model.dtype).itemsize


def sequence_bytes(model: PreTrainedModel, num_tokens: int, dtype: torch.dtype | None = None) -> int:
    """What a sequence of `num_tokens` occupies in vLLM's cache: whole blocks."""
    num_blocks = math.ceil(num_tokens / BLOCK_TOKENS) + SLACK_BLOCKS
    return num_blocks * BLOCK_TOKENS * bytes_per_token(model, dtype)


def served_bytes(weights: str, model: nn.Module, dtype: torch.dtype, *, is_sharded: bool) -> int:
    """Bytes of the weights in `dtype` that vLLM keeps beside the trained ones.

    These are buffers for adapters, or else the whole model unless both share tensors. weights: sampler.weights; `auto`
    is taken to share. ValueError for a LoRA rank that vLLM does not serve.
    """
    if added := adapters(model):
        values = sum(served_rank(len(a.A)) * (a.A.shape[1] + a.B.shape[0]) for a in added.values())
        return dtype.itemsize * values
    is_apart = is_sharded or weights == "copy"
    return dtype.itemsize * sum(p.numel() for p in model.parameters()) if is_apart else 0


def served_rank(rank: int) -> int:
    """The rank of vLLM's buffers for an adapter of `rank`: the next that it has. ValueError beyond all of them."""
    if rank > max(SERVED_RANKS):
        raise ValueError(f"model.lora_rank = {rank}: vLLM serves ranks up to {max(SERVED_RANKS)}")
    return min(served for served in SERVED_RANKS if served >= rank)


def reserved_bytes(device: torch.device, *, has_engine: bool) -> int:
    """Bytes of a GPU that no tensor of ours shows: CUDA's context and code, gaps; an engine's graphs and workspaces.

    Round numbers: an H100 of 79.2 GiB trained with 73 GiB of tensors allocated beside an engine with 86 CUDA graphs, so
    all of it took less than 6.2 GiB there.
    """
    return CUDA_BYTES + has_engine * ENGINE_BYTES if device.type == "cuda" else 0


def available_bytes(device: torch.device, total: int, spare: int) -> int:
    """Memory a KV cache may take: on CUDA half of what is spare beside the reserve, on CPU an eighth of `total`."""
    if device.type != "cuda":
        return total // 8
    return max(0, spare - reserved_bytes(device, has_engine=True)) // 2


def kv_cache_bytes(policy: Policy, config: SamplerConfig, max_sequence_tokens: int, training_bytes: int = 0) -> int:
    """What config says, or bytes for the sequences sampled at once at their longest, cut to what is available.

    training_bytes: what training will keep besides the weights. ValueError when not even one sequence fits.
    """
    if config.kv_cache_bytes:
        return config.kv_cache_bytes
    one = sequence_bytes(policy.model, max_sequence_tokens, cache_dtype(config, policy.dtype))
    served = served_bytes(config.weights, policy.model, policy.dtype, is_sharded=is_sharded(policy))
    free, total = device_memory(policy.device)
    available = available_bytes(policy.device, total, free - training_bytes - served)
    if one > available:
        raise ValueError(
            f"one sequence of {max_sequence_tokens} tokens needs {one} bytes of KV cache, {available} are available: "
            "shorten sampler.max_new_tokens, or set sampler.kv_cache_bytes yourself"
        )
    return min(one * (config.batch_size or MOST_SEQUENCES), available)


def num_sequences(policy: Policy, config: SamplerConfig, max_sequence_tokens: int, cache_bytes: int) -> int:
    """Sequences that are sampled at once: what config says, or as many as a cache of this size holds at their longest.

    At least 1, at most `MOST_SEQUENCES`: every further one takes a row of logits, and CUDA graphs end before.
    """
    if config.batch_size:
        return config.batch_size
    one = sequence_bytes(policy.model, max_sequence_tokens, cache_dtype(config, policy.dtype))
    return max(1, min(cache_bytes // one, MOST_SEQUENCES))
