"""A small model with random weights and a character tokenizer, for warm starts from nothing."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fastrl.config.schema import ScratchConfig

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")


def scratch_tokenizer(config: ScratchConfig) -> PreTrainedTokenizerFast:
    """One token per character of `config.characters`, besides <pad>, <eos> and <unk>."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *dict.fromkeys(config.characters)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def scratch_model(config: ScratchConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A float32 Qwen3 with tied embeddings. The weights depend on `seed` alone."""
    architecture = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(architecture).float().eval()
