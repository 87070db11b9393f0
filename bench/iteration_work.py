"""What a measurement of whole iterations does, and the folder for it: model, tokenizer, prompts; lengths."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_trl import big_tokenizer, small_tokenizer
from gpu_train import SHAPES
from transformers import AutoModelForCausalLM

NUM_SAMPLES = 8
TAIL_SIGMA, TAIL_MEDIAN = 1.0, 1 / 4  # of varied lengths: log-normal, its median as a share of the longest
EXPRESSION = "17*(3+4)-12/5+"


@dataclass(frozen=True)
class Work:
    """One measurement. prompt and completion in tokens, of the longest; micro_batch in sequences of that length.

    lengths: equal | varied. kv_gib: of fastrl's KV cache. trl_share: of the GPU's memory, for TRL's engine.
    """

    name: str
    who: str = "fastrl"
    shape: str = "qwen3-0.6b"
    lengths: str = "equal"
    sampler: str = "vllm"
    weights: str = "alias"
    objective: str = "dr-grpo"
    kv_cache_dtype: str = "auto"
    prompts: int = 32
    prompt: int = 256
    completion: int = 768
    micro_batch: int = 16
    kv_gib: float = 24.0
    trl_share: float = 0.4
    iterations: int = 4
    low_memory: bool = False
    recompute: bool = False
    is_dry: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"

    @property
    def dtype(self) -> str:
        return "float32" if self.is_dry and not self.low_memory else "bfloat16"

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def num_rollouts(self) -> int:
        return self.prompts * NUM_SAMPLES


def lengths_of(work: Work) -> list[int]:
    """Tokens of each completion, prompt by prompt, the same in every iteration: the longest, or a long tail."""
    if work.lengths == "equal":
        return [work.completion] * work.num_rollouts
    median = np.log(TAIL_MEDIAN * work.completion)
    drawn = np.random.default_rng(0).lognormal(median, TAIL_SIGMA, work.num_rollouts)
    return np.clip(np.round(drawn), 1, work.completion).astype(int).tolist()


def prompt_texts(work: Work) -> list[str]:
    """As many different prompts as an iteration takes, one token a character."""
    numbered = (f"{i}+" + EXPRESSION * work.prompt for i in range(100, 100 + work.prompts))
    return [text[: work.prompt - 1] + "=" for text in numbered]


def prepare(work: Work, folder: Path) -> None:
    """folder/model with random weights at the true shape, folder/rows.jsonl with the prompts."""
    torch.manual_seed(0)
    config = SHAPES[work.shape]
    tokenizer = big_tokenizer(small_tokenizer(), config.vocab_size)
    with torch.device(work.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, work.dtype))
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": text, "answer": r"\frac{2}{3}"} for text in prompt_texts(work)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
