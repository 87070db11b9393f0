"""Shapes of the models in configs/recipes, as their config.json on the hub has them, written down by hand.

Checked against the numbers of parameters in their model cards (tests/test_recipes.py).
"""

from transformers import Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int) -> Qwen3Config:
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=intermediate,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )


def _qwen2(hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        hidden_size=hidden,
        num_hidden_layers=28,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
    )


MODELS: dict[str, PreTrainedConfig] = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728),
    "Qwen/Qwen2.5-Math-1.5B": _qwen2(1536, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2.5-Math-7B": _qwen2(3584, 28, 4, 18944, 152064, False),
    "meta-llama/Llama-3.2-3B-Instruct": LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
        vocab_size=128256,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "google/gemma-3-1b-it": Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        hidden_size=1152,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=6912,
        vocab_size=262144,
        max_position_embeddings=32768,
        sliding_window=512,
        tie_word_embeddings=True,
    ),
}
