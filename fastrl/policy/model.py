"""The policy: one module whose forward holds backbone, head and loss (FSDP2 gathers parameters in a forward only).

Loading compares on random tokens: log-probs through `Head` with the model's own (an architecture whose head does more
than `Head` says is refused by name), and a packed forward with one sequence at a time (an architecture that cannot be
packed runs padded, and says so).
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fastrl.config import ModelConfig
from fastrl.kernels import Head, PolicyLoss, TokenLoss, linear_policy_loss, token_logprobs
from fastrl.policy.attention import (
    AttentionChoice,
    choose_attention,
    is_packed,
    packed_arguments,
    use_packed_attention,
)
from fastrl.policy.layer_norm import sum_layer_norms_in_float32
from fastrl.policy.lora import base_path, is_adapter_folder, load_adapters
from fastrl.policy.micro_batch import MicroBatch, build_micro_batch
from fastrl.policy.packing import cut_micro_batches
from fastrl.policy.recompute import recompute_blocks
from fastrl.ranks import ALONE
from fastrl.rollouts import Rollout

CHECKED = (
    (1, 9),
    (5, 4),
    (5, 4),
    (5, 1),
    (1, 14),
    (6, 7),
    (2, 0),
    (6, 9),
)  # prompt, completion; as long is the same prompt
CHECKED_WINDOW = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class Policy(nn.Module):
    """A Hugging Face causal LM with the token loss on top: `loss` is what a token pays; logits are / `temperature`.

    Batches that carry the sampler's log-probs are importance-weighted up to `importance_cap`. device and dtype: of the
    forward; ranks: the processes that hold the parameters' shards (`sharding`).
    """

    def __init__(self, model: PreTrainedModel, loss: TokenLoss | None = None, temperature: float = 1.0):
        super().__init__()
        self.model = model
        self.loss = loss or TokenLoss()
        self.importance_cap: float | None = None
        self.temperature = temperature
        self.device, self.dtype = model.device, model.dtype
        self.ranks = ALONE

    def head(self) -> Head:
        """The model's head, with the scale and softcap that its config names."""
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale = scale / divisor
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, getattr(layer, "bias", None), getattr(config, "final_logit_softcapping", None), scale)

    @property
    def is_packed(self) -> bool:
        """Whether micro-batches run without padding."""
        return is_packed(self.model)

    def cut(self, rollouts: Sequence[Rollout], token_budget: int, *, num_ranks: int = 1) -> list[list[int]]:
        """Indices of the rollouts of each micro-batch; see `cut_micro_batches`."""
        return cut_micro_batches(rollouts, token_budget, is_packed=self.is_packed, num_ranks=num_ranks)

    def micro_batch(
        self, rollouts: Sequence[Rollout], token_weights: Sequence[float] | None = None, *, has_importance: bool = False
    ) -> MicroBatch:
        """Their tensors on the policy's device; see `build_micro_batch`."""
        batch = build_micro_batch(rollouts, token_weights, has_importance=has_importance, is_packed=self.is_packed)
        return batch.to(self.device)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """(N,H) hidden states that predict the completion tokens."""
        return self._row(batch).index_select(0, batch.rows_N)

    def _row(self, batch: MicroBatch) -> Tensor:
        """(T,H) hidden states of all tokens."""
        if not self.is_packed:
            return self._padded(batch)
        return self.model.base_model(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.positions_T.unsqueeze(0),
            use_cache=False,
            **packed_arguments(batch.layout),
        ).last_hidden_state.squeeze(0)

    def _padded(self, batch: MicroBatch) -> Tensor:
        """Padded on the right: a causal model never looks at what comes later, so no mask is needed."""
        assert not batch.layout.num_prefixes, "this batch was built for a packed model"
        lengths = batch.layout.lengths
        num, width = len(lengths), max(lengths)
        rows_T = torch.repeat_interleave(torch.arange(num), torch.tensor(lengths)).to(self.device)
        places_T = rows_T * width + batch.positions_T
        ids_BL = batch.input_ids_T.new_zeros(num * width).index_copy(0, places_T, batch.input_ids_T).view(num, width)
        return self.model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state.flatten(0, 1)[places_T]

    @overload
    def forward(
        self, batch: MicroBatch, mode: Literal["loss"] = "loss", grad_weight: Tensor | None = None
    ) -> PolicyLoss: ...
    @overload
    def forward(self, batch: MicroBatch, mode: Literal["score"]) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, batch: MicroBatch, mode: Literal["loss", "score"] = "loss", grad_weight: Tensor | None = None
    ) -> PolicyLoss | tuple[Tensor, Tensor]:
        """loss: the differentiable loss of the micro-batch. score: (logprobs, entropy), (N,) fp32, no gradient.

        grad_weight: float32 (V,H), to which the forward adds the gradient of the head's weight; the backward leaves it.
        """
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
            grad_weight=grad_weight,
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
    """The tokenizer, the base model's where path holds adapters. ValueError when it has no end-of-sequence token."""
    path = base_path(config.path)
    _check_path(path)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{path}' has no eos_token: completions could never stop")
    return tokenizer


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The model's config, without its weights; the base model's where path holds adapters."""
    path = base_path(config.path)
    _check_path(path)
    return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)


def max_context(config: ModelConfig) -> int | None:
    """Longest sequence the model was made for, in tokens, from its config alone; None where it names none."""
    return getattr(load_architecture(config).get_text_config(), "max_position_embeddings", None)


def load_model(config: ModelConfig, say: Callable[[str], None] = print) -> PreTrainedModel:
    """The causal LM on its device and in its dtype, dropout off, head and packing checked; adapters that path holds."""
    device = resolve_device(config.device)
    architecture = load_architecture(config)
    dtype = resolve_dtype(config.dtype, device)
    choice = choose_attention(config.attention, device, dtype, architecture)
    model = AutoModelForCausalLM.from_pretrained(
        base_path(config.path),
        config=architecture,
        dtype=dtype,
        attn_implementation=None if choice.is_packed else choice.path,
        trust_remote_code=config.trust_remote_code,
    )
    model = model.to(device).eval()
    sum_layer_norms_in_float32(model)
    say(f"attention: {pack(model, choice) if choice.is_packed else choice}")
    check_head(model)
    _make_savable(model)
    if is_adapter_folder(config.path):
        load_adapters(model, config.path)
    if config.gradient_checkpointing:
        say(f"activation checkpointing: {recompute_blocks(model)} blocks")
    return model


def pack(model: PreTrainedModel, choice: AttentionChoice) -> AttentionChoice:
    """Make the model take packed sequences if a comparison shows that it can; else it stays padded, with a reason."""
    own = model.config._attn_implementation
    try:
        is_routed = use_packed_attention(model, choice.path)
        problem = packing_problem(model) if is_routed else "does not follow transformers' attention interface"
    except ValueError as error:  # transformers refuses the implementation for this architecture
        problem = f"cannot be packed: {error}"
    if not problem:
        return choice
    model.set_attn_implementation(own)
    return AttentionChoice(own, False, f"{type(model).__name__} {problem}")


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


def random_rollout(model: PreTrainedModel, length: int, seed: int, prompt_length: int = 1) -> Rollout:
    """A completion of `length` tokens; prompts of one length are the same."""
    vocab = min(model.get_output_embeddings().weight.shape[0], model.config.get_text_config().vocab_size)
    sizes = ((prompt_length, -prompt_length - 1), (length, seed))
    draws = (torch.randint(vocab, (size,), generator=torch.Generator().manual_seed(s)).tolist() for size, s in sizes)
    return Rollout(*draws, [0.0] * length, "length", 0)


@torch.no_grad()
def packing_problem(model: PreTrainedModel) -> str:
    """What keeps the model from being packed; empty where a pack has the hidden states of one sequence at a time.

    The other side is transformers' eager attention. Windows are shortened for the comparison, so that they act.
    """
    policy = Policy(model)
    rollouts = [random_rollout(model, length, seed, prompt) for seed, (prompt, length) in enumerate(CHECKED)]
    packed = model.config._attn_implementation
    with _short_windows(model):
        try:
            ours_NH = policy.hidden_states(policy.micro_batch(rollouts)).float()
        except (TypeError, ValueError, RuntimeError) as error:
            return f"cannot be packed: {error}"
        model.set_attn_implementation("eager")
        own_NH = torch.cat([policy.hidden_states(policy.micro_batch([r])).float() for r in rollouts])
        model.set_attn_implementation(packed)
    worst = ((ours_NH - own_NH).norm(dim=-1) / own_NH.norm(dim=-1)).mean().item()
    tolerance = TOLERANCE[model.dtype]
    if worst <= tolerance:
        return ""
    return f"has other hidden states in a pack than alone (relative difference {worst:.3g}, allowed {tolerance})"


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Sliding windows of CHECKED_WINDOW tokens, in the config (masks) and in the layers (attention)."""
    holders = [model.config, model.config.get_text_config(), *model.modules()]
    saved = [(h, h.sliding_window) for h in holders if isinstance(getattr(h, "sliding_window", None), int)]
    try:
        for holder, _ in saved:
            holder.sliding_window = CHECKED_WINDOW
        yield
    finally:
        for holder, window in reversed(saved):
            holder.sliding_window = window


@torch.no_grad()
def check_head(model: PreTrainedModel, num_tokens: int = 16) -> None:
    """ValueError, naming the architecture, when log-probs through `Head` differ from the model's own."""
    policy, rollout = Policy(model), random_rollout(model, num_tokens, seed=0)
    ours, _ = policy(policy.micro_batch([rollout]), mode="score")
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    own = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    worst = (ours - own).abs().max().item()
    tolerance = TOLERANCE[model.dtype]
    if not worst <= tolerance:
        name = type(model).__name__
        raise ValueError(
            f"{name}: log-probs through its output embedding differ from its own by {worst:.3g} (allowed {tolerance}); "
            "its head does more than scale, bias and softcap, so fastrl cannot train it"
        )
