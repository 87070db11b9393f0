"""The tensors that one forward takes: rollouts on a row, and what is asked of each of their tokens.

Sequences lie one behind the other on a single row, without padding. A prompt that several of them share lies there
once, before its completions (`attention_segments` says what sees what). Only positions that predict a completion token
reach the head: hidden state t−1 predicts token t, so the last token of a completion is a target and never an input.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastrl.kernels import TokenRows
from fastrl.kernels.rows import to_device
from fastrl.policy.attention_segments import Layout
from fastrl.rollouts import Rollouts, spans


@dataclass(frozen=True)
class MicroBatch:
    """One row of T tokens: input_ids_T, positions_T int64, and `layout`, which says what each of them sees.

    places_N indexes the T hidden states. rows are the N completion tokens, in the order of the rollouts, without the
    replies of an environment, which nobody predicts; their weight is 0 where the loss mask is. Their advantages stay on
    the host: that is where rows without gradient are left out.
    """

    layout: Layout
    input_ids_T: Tensor
    positions_T: Tensor
    places_N: Tensor
    rows: TokenRows

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on `device`; copies wait for nothing."""
        ids_T, positions_T, places_N = (
            to_device(x, device) for x in (self.input_ids_T, self.positions_T, self.places_N)
        )
        rows = replace(self.rows.to(device), advantages=self.rows.advantages)
        return MicroBatch(self.layout.to(device), ids_T, positions_T, places_N, rows)


def num_inputs_R(rollouts: Rollouts) -> np.ndarray:
    """Tokens that a forward of each rollout alone takes."""
    return rollouts.prompt_lengths_R + np.maximum(rollouts.completion_lengths_R - 1, 0)


def computed_tokens(rollouts: Rollouts, *, is_packed: bool) -> int:
    """Tokens that the forward of one micro-batch computes: padding included, shared prompts once."""
    sizes_R = num_inputs_R(rollouts)
    if not is_packed:
        return int(len(rollouts) * sizes_R.max())
    _, firsts = np.unique(rollouts.prompt_keys_R, return_index=True)
    return int(rollouts.prompt_lengths_R[firsts].sum() + (sizes_R - rollouts.prompt_lengths_R).sum())


def build_micro_batch(
    rollouts: Rollouts,
    token_weights_R: np.ndarray | None = None,
    shares_R: np.ndarray | None = None,
    *,
    is_packed: bool,
    with_sampler_logprobs: bool = False,
    temperature: float = 1.0,
) -> MicroBatch:
    """Tensors of one forward. token_weights_R: of each rollout's tokens, where the loss mask keeps them; None: 0.

    shares_R: factors of the credits, the policy term's weight over the token weight; None: 1. with_sampler_logprobs:
    the loss weighs tokens by importance itself. Not is_packed: prompts are not shared, sequences lie in the order of
    the rollouts.
    """
    row, own, lengths_R = _Row(rollouts, is_packed), rollouts.own, rollouts.completion_lengths_R
    weights_R = np.zeros(len(rollouts)) if token_weights_R is None else token_weights_R
    credits_N = np.zeros(rollouts.num_tokens) if rollouts.credits_N is None else rollouts.credits_N.astype(np.float64)
    if shares_R is not None:
        credits_N = credits_N * np.repeat(shares_R, lengths_R)
    credits_N = credits_N * rollouts.loss_mask_N
    if rollouts.importance_weights_N is not None:
        credits_N = credits_N * rollouts.importance_weights_N
    return MicroBatch(
        row.layout,
        torch.from_numpy(row.ids_T.astype(np.int64)),
        torch.from_numpy(row.positions_T),
        torch.from_numpy(own(row.places_N)),
        TokenRows(
            torch.from_numpy(own(rollouts.completions_N).astype(np.int64)),
            _float32(own(credits_N)),
            _float32(own(np.repeat(weights_R, lengths_R) * rollouts.loss_mask_N)),
            _float32(rollouts.old_logprobs_N, own),
            _float32(rollouts.sampler_logprobs_N, own) if with_sampler_logprobs else None,
            _float32(rollouts.ref_logprobs_N, own),
            temperature,
        ),
    )


class _Row:
    """Lays rollouts on a row: shared prompts, then whole sequences, then the completions of shared prompts.

    places_N: where the hidden states lie that predict each completion token. Segments of a kind come in the order of
    their lengths when packed, so that neighbours can be attended together.
    """

    def __init__(self, rollouts: Rollouts, is_packed: bool):
        self.rollouts = rollouts
        keys_R, sizes_R, prompts_R = rollouts.prompt_keys_R, num_inputs_R(rollouts), rollouts.prompt_lengths_R
        counts = np.bincount(keys_R)
        is_shared_R = (counts[keys_R] > 1) & is_packed
        firsts = np.unique(keys_R[is_shared_R], return_index=True)[1]
        self.owners = np.flatnonzero(is_shared_R)[firsts]  # a rollout of each shared prompt
        self.owners = self.owners[np.argsort(prompts_R[self.owners], kind="stable")]
        self.alone = np.flatnonzero(~is_shared_R)
        if is_packed:
            self.alone = self.alone[np.argsort(sizes_R[self.alone], kind="stable")]
        shared = np.flatnonzero(is_shared_R)
        self.continued = shared[np.lexsort((sizes_R[shared], prompts_R[shared]))]
        self.segment_of_key = np.zeros(len(counts), dtype=np.int64)
        self.segment_of_key[keys_R[self.owners]] = np.arange(len(self.owners))
        self._lay(keys_R, sizes_R, prompts_R)

    def _lay(self, keys_R: np.ndarray, sizes_R: np.ndarray, prompts_R: np.ndarray) -> None:
        """Segments: where each begins among the tokens and in its sequence, how long it is, what it continues."""
        behind = self.continued[self.rollouts.completion_lengths_R[self.continued] > 1]
        starts, zeros = self.rollouts.prompt_starts_R, np.zeros(len(self.owners) + len(self.alone), dtype=np.int64)
        sources = np.concatenate([starts[self.owners], starts[self.alone], (starts + prompts_R)[behind]])
        lengths = np.concatenate([prompts_R[self.owners], sizes_R[self.alone], (sizes_R - prompts_R)[behind]])
        begins = np.concatenate([zeros, prompts_R[behind]])
        self.ids_T = self.rollouts.tokens_T[spans(sources, lengths)]
        self.positions_T = spans(begins, lengths)
        prefixes = [None] * len(zeros) + self.segment_of_key[keys_R[behind]].tolist()
        self.layout = Layout(tuple(lengths.tolist()), tuple(prefixes), len(self.owners))
        self.places_N = self._places(behind, np.cumsum(lengths) - lengths, keys_R, prompts_R)

    def _places(self, behind: np.ndarray, starts: np.ndarray, keys_R: np.ndarray, prompts_R: np.ndarray) -> np.ndarray:
        """A completion's first token is predicted by the end of its prompt, the others by what lies before them."""
        num_owners, num_whole = len(self.owners), len(self.owners) + len(self.alone)
        firsts_R = np.zeros(len(self.rollouts), dtype=np.int64)
        firsts_R[self.alone] = starts[num_owners:num_whole] + prompts_R[self.alone] - 1
        firsts_R[behind] = starts[num_whole:] - 1
        places_N = spans(firsts_R, self.rollouts.completion_lengths_R)
        ends = starts[:num_owners] + prompts_R[self.owners] - 1
        begun = self.continued[self.rollouts.completion_lengths_R[self.continued] > 0]
        places_N[self.rollouts.starts_R[begun]] = ends[self.segment_of_key[keys_R[begun]]]
        return places_N


def _float32(column_N: np.ndarray | None, part: Callable = np.asarray) -> Tensor | None:
    return None if column_N is None else torch.from_numpy(part(column_N).astype(np.float32))
