"""How many bytes the KV cache gets when nobody says: as much as the sampler can use, no more than memory allows."""

import math
import os

import torch
from transformers import PreTrainedModel

from fastrl.policy.model import Policy

BLOCK_TOKENS = 128  # the largest KV block of the back-ends in use (CPU); a sequence occupies whole blocks
SLACK_BLOCKS = 2  # per sequence: models that mix window and full attention round up once more
TRAINING_BYTES = 16  # per trained parameter besides its weight: fp32 gradient and master, two Adam moments


def bytes_per_token(model: PreTrainedModel, dtype: torch.dtype | None = None) -> int:
    """Keys and values of one token in all layers, in `dtype`, by default the model's."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * (dtype or model.dtype).itemsize


def available_bytes(policy: Policy) -> int:
    """Memory a KV cache may take: on CUDA half of what training leaves, on CPU an eighth of the machine's."""
    if policy.device.type != "cuda":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    free, _ = torch.cuda.mem_get_info(policy.device)
    num_trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    training = TRAINING_BYTES * num_trained // policy.ranks.world_size
    return max(0, free - training) // 2


def kv_cache_bytes(policy: Policy, max_sequence_tokens: int, max_num_sequences: int) -> int:
    """Bytes for all sequences at their longest, cut to what is available. ValueError when not even one fits."""
    blocks = math.ceil(max_sequence_tokens / BLOCK_TOKENS) + SLACK_BLOCKS
    one = blocks * BLOCK_TOKENS * bytes_per_token(policy.model, policy.dtype)
    available = available_bytes(policy)
    if one > available:
        raise ValueError(
            f"one sequence of {max_sequence_tokens} tokens needs {one} bytes of KV cache, {available} are available: "
            "shorten sampler.max_new_tokens, or set sampler.kv_cache_bytes yourself"
        )
    return min(one * max_num_sequences, available)
