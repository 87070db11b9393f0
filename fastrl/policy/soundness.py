"""Comparisons on random tokens at load: what an architecture does that this code does not know of is found by them.

Log-probs through `Head` against the model's own (an architecture whose head does more than `Head` says is refused by
name), and a packed forward against one sequence at a time (one that cannot be packed runs padded, and says so).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastrl.policy.attention import AttentionChoice, use_packed_attention
from fastrl.policy.micro_batch import MicroBatch
from fastrl.policy.model import Policy
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
PACK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.06}  # of any token; sound packs reach 1e-6 and 0.02


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


def random_rollout(model: PreTrainedModel, length: int, seed: int, prompt_length: int = 1) -> Rollout:
    """A completion of `length` tokens; prompts of one length are the same."""
    vocab = min(model.get_output_embeddings().weight.shape[0], model.config.get_text_config().vocab_size)
    sizes = ((prompt_length, -prompt_length - 1), (length, seed))
    draws = (torch.randint(vocab, (size,), generator=torch.Generator().manual_seed(s)).tolist() for size, s in sizes)
    return Rollout(*draws, [0.0] * length, "length", 0)


@torch.no_grad()
def packing_problem(model: PreTrainedModel) -> str:
    """What keeps the model from being packed; empty where every token of a pack has the hidden state it has alone.

    The other side is transformers' eager attention. Windows are shortened for the comparison, so that they act. The
    largest difference decides: a pack that leaks at one boundary is right nearly everywhere.
    """
    policy = Policy(model)
    rollouts = [random_rollout(model, length, seed, prompt) for seed, (prompt, length) in enumerate(CHECKED)]
    packed = model.config._attn_implementation
    with _short_windows(model):
        try:
            batch = policy.micro_batch(rollouts)
            ours_TH = policy.row(batch).float()
        except (TypeError, ValueError, RuntimeError) as error:
            return f"cannot be packed: {error}"
        model.set_attn_implementation("eager")
        own_TH = torch.cat(list(_segments_alone(model, batch))).float()
        model.set_attn_implementation(packed)
    worst = ((ours_TH - own_TH).norm(dim=-1) / own_TH.norm(dim=-1)).max().item()
    tolerance = PACK_TOLERANCE[model.dtype]
    if worst <= tolerance:
        return ""
    return f"has other hidden states in a pack than alone (relative difference up to {worst:.3g}, allowed {tolerance})"


def _segments_alone(model: PreTrainedModel, batch: MicroBatch) -> Iterator[Tensor]:
    """(tokens, H) hidden states of each segment of the row, computed behind its prefix and nothing else."""
    segments = batch.input_ids_T.split(batch.layout.lengths)
    for ids, prefix in zip(segments, batch.layout.prefixes, strict=True):
        whole = ids if prefix is None else torch.cat([segments[prefix], ids])
        yield model.base_model(input_ids=whole.unsqueeze(0), use_cache=False).last_hidden_state[
            0, len(whole) - len(ids) :
        ]


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
