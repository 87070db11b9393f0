"""FLOPs and bytes that a step has to compute and to read: floors, from the shapes of a dense model and its sequences.

    training    6 · B · T + 6 · L · D · S + 6 · H · V · C        scoring: a third of it, the forward alone
    decoding    steps · (weights + keys and values of all sequences at their mean length)

B parameters of the blocks, T tokens (a prompt once for all of its completions), L layers, D = heads · head size, H·V
the head, C completion tokens, S the pairs of tokens that see each other, doubled: length² of a sequence alone. Left
out: recomputed blocks, logits of prompts, norms, padding. A token of a mixture of experts is counted with all of B.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from fastrl.policy.attention import head_dim
from fastrl.policy.recompute import blocks_of
from fastrl.sampling.kv_budget import bytes_per_token


@dataclass(frozen=True)
class ModelShape:
    """attention_width: heads · head size. kv_bytes: keys and values that the sampler keeps of a token in all layers."""

    block_parameters: int
    num_layers: int
    attention_width: int
    hidden_size: int
    vocab_size: int
    kv_bytes: int
    weight_bytes: int  # read by a decode step: blocks and head

    @classmethod
    def of(cls, model: PreTrainedModel, cache_dtype: torch.dtype | None = None) -> "ModelShape":
        """cache_dtype: of keys and values; None: the model's."""
        config, blocks = model.config.get_text_config(), blocks_of(model)
        size = sum(p.numel() for block in blocks for p in block.parameters())
        head = config.hidden_size * config.vocab_size
        return cls(
            block_parameters=size,
            num_layers=len(blocks),
            attention_width=config.num_attention_heads * head_dim(config),
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            kv_bytes=bytes_per_token(model, cache_dtype),
            weight_bytes=model.dtype.itemsize * (size + head),
        )


@dataclass(frozen=True)
class Sequences:
    """num_sequences completions of `completion` tokens behind num_prompts different prompts of `prompt` tokens."""

    num_prompts: int
    num_sequences: int
    prompt: int
    completion: int

    @property
    def num_tokens(self) -> int:
        return self.num_prompts * self.prompt + self.num_sequences * self.completion

    @property
    def num_pairs(self) -> int:
        """S."""
        length = self.prompt + self.completion
        return self.num_prompts * self.prompt**2 + self.num_sequences * (length**2 - self.prompt**2)


def training_flops(shape: ModelShape, sequences: Sequences) -> float:
    """Of forward and backward, every parameter trained."""
    attention = shape.num_layers * shape.attention_width * sequences.num_pairs
    head = shape.hidden_size * shape.vocab_size * sequences.num_sequences * sequences.completion
    return 6.0 * (shape.block_parameters * sequences.num_tokens + attention + head)


def scoring_flops(shape: ModelShape, sequences: Sequences) -> float:
    return training_flops(shape, sequences) / 3


def decoding_bytes(shape: ModelShape, sequences: Sequences, num_rounds: int = 1) -> float:
    """Of all steps. num_rounds: groups of sequences that are sampled one after the other, each reading the weights."""
    mean_length = sequences.prompt + sequences.completion / 2
    keys = sequences.num_sequences * mean_length * shape.kv_bytes
    return sequences.completion * (num_rounds * shape.weight_bytes + keys)
