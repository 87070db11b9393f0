"""Comparisons on random tokens at load. They find what an architecture does and this code does not know of.

Log-probs through `Head` are compared with the model's own: an architecture whose head does more than `Head` says is
refused by name. A packed forward is compared with one sequence at a time: an architecture that cannot be packed runs
padded, and says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastrl.policy.attention import AttentionChoice, use_packed_attention
from fastrl.policy.model import Policy
from fastrl.rollouts import Rollouts

# (prompt, completion) tokens of the sequences that are compared. Prompts of equal length are the same prompt.
CHECKED = (
    (1, 9),
    (5, 4),
    (5, 4),
    (5, 1),
    (1, 14),
    (6, 7),
    (2, 0),
    (6, 9),
    (3, 7),
    (4, 12),
)
CHECKED_WINDOW = 4
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-3}  # a relative difference below it is no leak


def pack(model: PreTrainedModel, choice: AttentionChoice) -> AttentionChoice:
    """Let the model take packed sequences if a comparison shows that it can. If not it stays padded, with a reason."""
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


def random_rollout(model: PreTrainedModel, length: int, seed: int, prompt_length: int = 1) -> Rollouts:
    """A completion of `length` tokens by `seed`. The prompt depends on its length alone."""
    table = model.get_output_embeddings() or model.get_input_embeddings()  # a bare backbone has no head
    vocab = min(table.weight.shape[0], model.config.get_text_config().vocab_size)
    sizes = ((prompt_length, -prompt_length - 1), (length, seed))
    draws = (torch.randint(vocab, (size,), generator=torch.Generator().manual_seed(s)).tolist() for size, s in sizes)
    return Rollouts.of(*([ids] for ids in draws), is_truncated=[True])


@torch.no_grad()
def packing_problem(model: PreTrainedModel) -> str:
    """Why the model cannot be packed; empty where a pack gives the hidden states of one sequence at a time.

    First, with one sequence at a time, the packed attention must agree with transformers' eager attention. Then a pack
    may differ from single sequences by twice what rounding does to this model. Rounding is seen where nothing can leak:
    between the two attentions, and between single sequences and a padded batch. The worst token counts, because a leak
    at a boundary shows in one sequence only. Windows are shortened so that they act on these short sequences.
    """
    policy = Policy(model)
    singles = [random_rollout(model, length, seed, prompt) for seed, (prompt, length) in enumerate(CHECKED)]
    rollouts, packed = Rollouts.concat(singles), model.config._attn_implementation

    def hidden_states(batches: list[Rollouts]) -> Tensor:
        return torch.cat([policy.hidden_states(policy.micro_batch(batch)).float() for batch in batches])

    with _short_windows(model):
        try:
            pack_NH, alone_NH = hidden_states([rollouts]), hidden_states(singles)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"cannot be packed: {error}"
        model.set_attn_implementation("eager")
        eager_NH, padded_NH = hidden_states(singles), hidden_states([rollouts])
        model.set_attn_implementation(packed)
    wrong, tolerance = _worst_gap(alone_NH, eager_NH), TOLERANCE[model.dtype]
    if not wrong <= tolerance:
        return f"has other hidden states than with eager attention (relative difference {wrong:.3g}, not {tolerance})"
    allowed = 2 * max(wrong, _worst_gap(padded_NH, eager_NH), ROUNDING[model.dtype])
    leak = _worst_gap(pack_NH, alone_NH)
    if not leak <= allowed:
        return f"has other hidden states in a pack than alone (relative difference {leak:.3g}, allowed {allowed:.2g})"
    return ""


@torch.enable_grad()
def hidden_states_and_gradients(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The same sequences in one batch: (T,H) hidden states and all gradients of a function of them, flat; float32."""
    singles = [random_rollout(model, length, seed, prompt) for seed, (prompt, length) in enumerate(CHECKED)]
    policy = Policy(model)
    row_TH = policy.row(policy.micro_batch(Rollouts.concat(singles)))
    weights_H = torch.linspace(-1, 1, row_TH.shape[1], device=row_TH.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((row_TH.float() * weights_H).square().sum(), trained, allow_unused=True)
    return row_TH.detach().float(), torch.cat([g.flatten().float() for g in found if g is not None])


def _worst_gap(ours_NH: Tensor, own_NH: Tensor) -> float:
    """Relative difference of the token that differs most; NaN if any token's is NaN."""
    return ((ours_NH - own_NH).norm(dim=-1) / own_NH.norm(dim=-1)).max().item()


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Inside, sliding windows are CHECKED_WINDOW tokens: in the config, for masks, and in the layers, for attention."""
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
    ours, _ = policy(policy.micro_batch(rollout), mode="score")
    ids = torch.from_numpy(rollout.tokens_T).to(model.device, torch.int64).unsqueeze(0)
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
