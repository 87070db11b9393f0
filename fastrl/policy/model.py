"""The policy: one module whose forward holds backbone, head and loss (FSDP2 gathers parameters in a forward only).

Loading compares log-probs through `Head` with the model's own on random tokens: an architecture whose head does more
than `Head` says is refused by name, instead of being trained on wrong log-probs.
"""

import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastrl.config import ModelConfig
from fastrl.kernels import Head, PolicyLoss, TokenLoss, linear_policy_loss, token_logprobs
from fastrl.policy.packing import MicroBatch


class Policy(nn.Module):
    """A Hugging Face causal LM with the token loss on top: `loss` is what a token pays; logits are / `temperature`.

    Batches that carry the sampler's log-probs are importance-weighted up to `importance_cap`.
    """

    def __init__(self, model: PreTrainedModel, loss: TokenLoss | None = None, temperature: float = 1.0):
        super().__init__()
        self.model = model
        self.loss = loss or TokenLoss()
        self.importance_cap: float | None = None
        self.temperature = temperature

    @property
    def device(self) -> torch.device:
        return self.model.device

    def head(self) -> Head:
        """The model's head, with the scale and softcap that its config names."""
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale = scale / divisor
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, getattr(layer, "bias", None), getattr(config, "final_logit_softcapping", None), scale)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """(N,H) hidden states that predict the completion tokens."""
        hidden_BLH = self.model.base_model(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
        return hidden_BLH.flatten(0, 1)[batch.rows_N]

    @overload
    def forward(self, batch: MicroBatch, mode: Literal["loss"] = "loss") -> PolicyLoss: ...
    @overload
    def forward(self, batch: MicroBatch, mode: Literal["score"]) -> tuple[Tensor, Tensor]: ...
    def forward(self, batch: MicroBatch, mode: Literal["loss", "score"] = "loss") -> PolicyLoss | tuple[Tensor, Tensor]:
        """loss: the differentiable loss of the micro-batch. score: (logprobs, entropy), (N,) fp32, no gradient."""
        if mode == "score":
            with torch.no_grad():
                return token_logprobs(
                    self.hidden_states(batch), self.head(), batch.targets_N, temperature=self.temperature
                )
        has_importance = batch.sampler_logprobs_N is not None
        return linear_policy_loss(
            self.hidden_states(batch),
            self.head(),
            batch.targets_N,
            batch.advantages_N,
            batch.token_weights_N,
            replace(self.loss, importance_cap=self.importance_cap) if has_importance else self.loss,
            old_logprobs=batch.old_logprobs_N,
            sampler_logprobs=batch.sampler_logprobs_N,
            ref_logprobs=batch.ref_logprobs_N,
            temperature=self.temperature,
        )


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda where there is one. ValueError for cuda without a device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device = 'cuda', but torch sees no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


@cache
def _check_path(path: str) -> None:
    """A path that looks local must hold a model; anything else is taken for a hub id, which is said once."""
    is_local = Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_local and not (Path(path).expanduser() / "config.json").is_file():
        raise FileNotFoundError(
            f"model.path = '{path}': no config.json there; a Hugging Face folder or hub id is needed"
        )
    if not is_local:
        print(f"model.path = '{path}' is no folder in {Path.cwd()}: taking it for a hub id", file=sys.stderr)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer. ValueError when it has no end-of-sequence token."""
    _check_path(config.path)
    tokenizer = AutoTokenizer.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{config.path}' has no eos_token: completions could never stop")
    return tokenizer


def max_context(config: ModelConfig) -> int | None:
    """Longest sequence the model was made for, in tokens, from its config alone; None where it names none."""
    architecture = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    return getattr(architecture.get_text_config(), "max_position_embeddings", None)


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The causal LM on its device and in its dtype, dropout off, head checked."""
    _check_path(config.path)
    device = resolve_device(config.device)
    architecture = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(
        config.path,
        config=architecture,
        dtype=resolve_dtype(config.dtype, device),
        attn_implementation=config.attention,
        trust_remote_code=config.trust_remote_code,
    )
    model = model.to(device).eval()
    check_head(model)
    _make_savable(model)
    return model


def _make_savable(model: PreTrainedModel) -> None:
    """transformers refuses to save some generation configs that it loads (temperature beside greedy decoding)."""
    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError as error:
        warnings.warn(
            f"the model's generation_config is not valid and is reset but for its stop tokens: {error}", stacklevel=3
        )
        model.generation_config = GenerationConfig(
            eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, bos_token_id=own.bos_token_id
        )


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """End-of-sequence ids of the tokenizer and of the model's generation config (chat models stop at end-of-turn)."""
    from_model = model.generation_config.eos_token_id if model.generation_config else None
    ids = from_model if isinstance(from_model, list) else [from_model]
    return sorted({tokenizer.eos_token_id, *(i for i in ids if i is not None)})


@torch.no_grad()
def check_head(model: PreTrainedModel, num_tokens: int = 16) -> None:
    """ValueError, naming the architecture, when log-probs through `Head` differ from the model's own."""
    policy = Policy(model)
    generator = torch.Generator().manual_seed(0)
    vocab = model.get_output_embeddings().weight.shape[0]
    ids = torch.randint(min(vocab, model.config.get_text_config().vocab_size), (1, num_tokens + 1), generator=generator)
    ids = ids.to(model.device)
    batch = MicroBatch(ids, torch.arange(num_tokens, device=ids.device), ids[0, 1:], *(2 * [torch.empty(0)]))
    ours, _ = policy(batch, mode="score")
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    own = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    worst = (ours - own).abs().max().item()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not worst <= tolerance:
        name = type(model).__name__
        raise ValueError(
            f"{name}: log-probs through its output embedding differ from its own by {worst:.3g} (allowed {tolerance}); "
            "its head does more than scale, bias and softcap, so fastrl cannot train it"
        )
