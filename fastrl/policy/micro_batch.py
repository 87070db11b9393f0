"""The tensors that one forward takes: rollouts on a row, and what is asked of each of their tokens.

Sequences lie one behind the other on a single row, without padding, and a prompt that several of them share lies there
once, before its completions (`layout`). Only positions that predict a completion token reach the head: hidden state
t−1 predicts token t, so the last token of a completion is a target and never an input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl.policy.layout import Layout
from fastrl.rollouts import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """One row of T tokens: input_ids_T, positions_T int64, and `layout`, which says what each of them sees.

    rows_N indexes the T hidden states; the rest are per completion token, (N,), in the order of the rollouts.
    token_weights_N is 0 where the loss mask is. The optional log-probs are NaN-free fp32 or None for all.
    """

    layout: Layout
    input_ids_T: Tensor
    positions_T: Tensor
    rows_N: Tensor
    targets_N: Tensor
    advantages_N: Tensor
    token_weights_N: Tensor
    old_logprobs_N: Tensor | None = None
    sampler_logprobs_N: Tensor | None = None
    ref_logprobs_N: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        moved = {k: None if v is None else _moved(v, device) for k, v in vars(self).items()}
        return MicroBatch(**moved)


def _moved(part: Tensor | Layout, device: torch.device) -> Tensor | Layout:
    return part.to(device, non_blocking=True) if isinstance(part, Tensor) else part.to(device)


def num_inputs(rollout: Rollout) -> int:
    """Tokens that a forward of this rollout alone takes."""
    return len(rollout.prompt_ids) + max(len(rollout.completion_ids) - 1, 0)


def computed_tokens(rollouts: Sequence[Rollout], *, is_packed: bool) -> int:
    """Tokens that the forward of one micro-batch computes: padding included, shared prompts once."""
    if not is_packed:
        return len(rollouts) * max(map(num_inputs, rollouts))
    prompts = {tuple(r.prompt_ids) for r in rollouts}
    return sum(map(len, prompts)) + sum(num_inputs(r) - len(r.prompt_ids) for r in rollouts)


def build_micro_batch(
    rollouts: Sequence[Rollout],
    token_weights: Sequence[float] | None = None,
    shares: Sequence[float] | None = None,
    *,
    is_packed: bool,
    has_importance: bool = False,
) -> MicroBatch:
    """Tensors of one forward. token_weights: one per rollout, for each of its tokens that the loss mask keeps.

    shares: one per rollout, a factor of its advantage: the policy term's weight over the token weight; None: 1.
    has_importance: carry the sampler's log-probs, for truncated importance sampling. Not is_packed: prompts are not
    shared, sequences lie in the order of the rollouts.
    """
    token_weights = token_weights if token_weights is not None else [0.0] * len(rollouts)
    shares = shares if shares is not None else [1.0] * len(rollouts)
    row = _Row(rollouts, is_packed)
    targets, advantages, weights = [], [], []
    for rollout, weight, share in zip(rollouts, token_weights, shares, strict=True):
        targets.extend(rollout.completion_ids)
        factors = rollout.importance or [1.0] * len(rollout.completion_ids)
        advantages.extend(rollout.advantage * share * m * f for m, f in zip(rollout.loss_mask, factors, strict=True))
        weights.extend(weight * m for m in rollout.loss_mask)
    return MicroBatch(
        row.layout(),
        torch.tensor(row.ids, dtype=torch.int64),
        torch.tensor(row.positions, dtype=torch.int64),
        torch.tensor([place for places in row.places for place in places], dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(advantages, dtype=torch.float32),
        torch.tensor(weights, dtype=torch.float32),
        _flat([r.old_logprobs for r in rollouts]),
        _flat([r.sampler_logprobs for r in rollouts]) if has_importance else None,
        _flat([r.ref_logprobs for r in rollouts]),
    )


class _Row:
    """Lays rollouts on a row: shared prompts, then whole sequences, then the completions of shared prompts.

    places: for each rollout, where the hidden states lie that predict its completion. Segments of a kind come in the
    order of their lengths when packed, so that neighbours can be attended together.
    """

    def __init__(self, rollouts: Sequence[Rollout], is_packed: bool):
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.lengths: list[int] = []
        self.prefixes: list[int | None] = []
        self.places: list[Sequence[int]] = [()] * len(rollouts)
        self.num_prefixes = 0
        members: dict[tuple[int, ...], list[int]] = {}
        for i, rollout in enumerate(rollouts):
            members.setdefault(tuple(rollout.prompt_ids), []).append(i)
        shared = {p: m for p, m in members.items() if is_packed and len(m) > 1}
        sizes = [num_inputs(r) for r in rollouts]
        alone = [i for i, r in enumerate(rollouts) if tuple(r.prompt_ids) not in shared]
        self._add_prompts(sorted(shared, key=len))
        self._add_whole(rollouts, sorted(alone, key=lambda i: sizes[i]) if is_packed else alone)
        continued = [(len(p), sizes[i], i, segment) for segment, p in enumerate(self.prompts) for i in shared[p]]
        self._add_completions(rollouts, sorted(continued))

    def layout(self) -> Layout:
        return Layout(tuple(self.lengths), tuple(self.prefixes), self.num_prefixes)

    def _add(self, ids: Sequence[int], position: int, prefix: int | None) -> int:
        """A segment of these ids; returns its place on the row."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.extend(range(position, position + len(ids)))
        self.lengths.append(len(ids))
        self.prefixes.append(prefix)
        return start

    def _add_prompts(self, prompts: list[tuple[int, ...]]) -> None:
        self.prompts, self.num_prefixes = prompts, len(prompts)
        self.ends = [self._add(prompt, 0, None) + len(prompt) - 1 for prompt in prompts]

    def _add_whole(self, rollouts: Sequence[Rollout], indices: list[int]) -> None:
        for i in indices:
            prompt, completion = rollouts[i].prompt_ids, rollouts[i].completion_ids
            first = self._add(prompt + completion[:-1], 0, None) + len(prompt) - 1
            self.places[i] = range(first, first + len(completion))

    def _add_completions(self, rollouts: Sequence[Rollout], continued: list[tuple[int, int, int, int]]) -> None:
        """(length of the prompt, inputs, rollout, segment of the prompt) of each."""
        for length, _, i, segment in continued:
            ids = rollouts[i].completion_ids
            if len(ids) < 2:  # the prompt predicts all there is
                self.places[i] = [self.ends[segment]] * len(ids)
            else:
                first = self._add(ids[:-1], length, segment)
                self.places[i] = [self.ends[segment], *range(first, first + len(ids) - 1)]


def _flat(values: Sequence[list[float] | None]) -> Tensor | None:
    if all(row is None for row in values):
        return None
    return torch.tensor([v for row in values for v in row], dtype=torch.float32)
