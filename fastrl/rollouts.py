"""Rollouts as columns: prompts, their completions, and everything that is learned about them on the way through a step.

A column's suffix says what it has an entry for: T tokens of prompts and completions back to back, R rollouts, N
completion tokens. Nothing is written into a batch: whoever adds a column makes a new batch with `replace`. Token ids
are never re-tokenised: what was sampled is what is trained, the end-of-sequence token included. With its credit a
completion token takes 13 bytes, a prompt token 4.

A conversation with an environment is one rollout: its completion is the model's turns and the replies between them
(prompt │ turn 1 │ reply 1 │ turn 2 │ …), 19 bytes a token. Replies are not the model's: the loss leaves them out, and
their log-probs and entropies are NaN, the sampler's as well as the trainer's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Rollouts:
    """A batch. Columns that nobody computed are None. tokens int32; log-probs, entropy and credits float32, in nats.

    sampler_logprobs_N: of the distribution that was sampled from. loss_mask_N: tokens that the loss may use. groups_R:
    index of the prompt among those that were asked for. rewards_R float64: what the verdict counts as (see
    `tasks.correctness`), NaN where the verifier broke. penalties_R ≤ 0: added to rewards where these are compared.
    credits_N: the signed advantage of each token. old_logprobs_N: before the first update. ref_logprobs_N: of the
    reference policy. policy_logprobs_N, entropy_N: the trainer's, before the update. updated_logprobs_N: after it.
    importance_weights_N: factors of the credit. In conversations alone: turns_N int16, k ≥ 1 in the model's turn k, −k
    in the reply to it, and turn_rewards_N float32, what the environment says that a turn is worth by itself: NaN where
    it says nothing.
    """

    tokens_T: np.ndarray
    prompt_lengths_R: np.ndarray
    completion_lengths_R: np.ndarray
    groups_R: np.ndarray
    is_truncated_R: np.ndarray
    sampler_logprobs_N: np.ndarray
    loss_mask_N: np.ndarray
    weight_versions_R: np.ndarray
    rewards_R: np.ndarray | None = None
    penalties_R: np.ndarray | None = None
    reasons_R: np.ndarray | None = None  # of the verdict, str
    answers_R: np.ndarray | None = None  # that the verifier read, str or None
    parts_R: np.ndarray | None = None  # (R, number of them): the rewards that were added up, NaN where one gave nothing
    texts_R: np.ndarray | None = None  # what the verifier saw, str
    credits_N: np.ndarray | None = None
    old_logprobs_N: np.ndarray | None = None
    ref_logprobs_N: np.ndarray | None = None
    policy_logprobs_N: np.ndarray | None = None
    entropy_N: np.ndarray | None = None
    updated_logprobs_N: np.ndarray | None = None
    importance_weights_N: np.ndarray | None = None
    turns_N: np.ndarray | None = None
    turn_rewards_N: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        sampler_logprobs: Sequence[Sequence[float]] | None = None,
        is_truncated: Sequence[bool] | None = None,
        groups: Sequence[int] | None = None,
        weight_version: int = 0,
        turns: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> Self:
        """From lists of token ids, one of each per rollout. groups None: every rollout has a prompt of its own.

        turns: of conversations, as in turns_N.
        """
        num, lengths = len(prompts), np.array([len(c) for c in completions], dtype=np.int32)
        logprobs = np.zeros(lengths.sum()) if sampler_logprobs is None else _flat(sampler_logprobs, np.float32)
        turns_N = None if turns is None else _flat(turns, np.int16)
        return cls(
            tokens_T=_flat([ids for pair in zip(prompts, completions, strict=True) for ids in pair], np.int32),
            prompt_lengths_R=np.array([len(p) for p in prompts], dtype=np.int32),
            completion_lengths_R=lengths,
            groups_R=np.arange(num, dtype=np.int32) if groups is None else np.array(groups, dtype=np.int32),
            is_truncated_R=np.zeros(num, bool) if is_truncated is None else np.array(is_truncated, dtype=bool),
            sampler_logprobs_N=logprobs.astype(np.float32, copy=False),
            loss_mask_N=np.ones(lengths.sum(), dtype=bool) if turns is None else turns_N > 0,
            weight_versions_R=np.full(num, weight_version, dtype=np.int32),
            turns_N=turns_N,
            **columns,
        )

    def __len__(self) -> int:
        return len(self.prompt_lengths_R)

    @property
    def num_tokens(self) -> int:
        """Completion tokens."""
        return len(self.sampler_logprobs_N)

    @cached_property
    def prompt_starts_R(self) -> np.ndarray:
        """Where each rollout begins in tokens_T."""
        return _starts(self.prompt_lengths_R + self.completion_lengths_R)

    @cached_property
    def starts_R(self) -> np.ndarray:
        """Where each completion begins in the columns over N."""
        return _starts(self.completion_lengths_R)

    @cached_property
    def completions_N(self) -> np.ndarray:
        """Ids of the completions' tokens, int32."""
        return self.tokens_T[spans(self.prompt_starts_R + self.prompt_lengths_R, self.completion_lengths_R)]

    def prompt(self, index: int) -> np.ndarray:
        """Ids of a prompt's tokens."""
        return self.tokens_T[self.prompt_starts_R[index] :][: self.prompt_lengths_R[index]]

    def completion(self, index: int) -> np.ndarray:
        """Ids of a completion's tokens."""
        return self.of_rollout(index, self.completions_N)

    def of_rollout(self, index: int, column_N: np.ndarray) -> np.ndarray:
        """The part of a column that belongs to one completion."""
        return column_N[self.starts_R[index] :][: self.completion_lengths_R[index]]

    @cached_property
    def prompt_keys_R(self) -> np.ndarray:
        """Equal numbers for equal prompts, in the order in which these appear."""
        known: dict[bytes, int] = {}
        data, size = self.tokens_T.tobytes(), self.tokens_T.itemsize
        places = zip((size * self.prompt_starts_R).tolist(), (size * self.prompt_lengths_R).tolist(), strict=True)
        return np.array([known.setdefault(data[start : start + n], len(known)) for start, n in places], dtype=np.int64)

    @cached_property
    def loss_tokens_R(self) -> np.ndarray:
        """Tokens of each completion that the loss may use. int64."""
        return self.sum_by_rollout(self.loss_mask_N).astype(np.int64)

    @cached_property
    def credit_sums_R(self) -> np.ndarray:
        """Sum of each completion's credits: its sign is the rollout's. float64."""
        return self.sum_by_rollout(self.credits_N * self.loss_mask_N)

    @cached_property
    def has_gradient_R(self) -> np.ndarray:
        """Whether the policy term of the loss moves anything: a token that the loss may use has credit."""
        return self.sum_by_rollout((self.credits_N != 0) & self.loss_mask_N) > 0

    @cached_property
    def rollout_N(self) -> np.ndarray:
        """Which rollout each completion token belongs to."""
        return np.repeat(np.arange(len(self)), self.completion_lengths_R)

    def own(self, column_N: np.ndarray) -> np.ndarray:
        """The part of a column that belongs to the model's own tokens: all but replies."""
        return column_N if self.turns_N is None else column_N[self.turns_N > 0]

    def among_all(self, own_n: np.ndarray) -> np.ndarray:
        """Inverse of `own` for a column of floats: NaN for replies."""
        if self.turns_N is None:
            return own_n
        column_N = np.full(self.num_tokens, np.nan, dtype=own_n.dtype)
        column_N[self.turns_N > 0] = own_n
        return column_N

    def sum_by_rollout(self, values_N: np.ndarray) -> np.ndarray:
        """(R,) sums over the model's own tokens of each completion, in their order. float64."""
        return np.bincount(self.own(self.rollout_N), self.own(values_N), minlength=len(self))

    def turns(self, index: int) -> list[tuple[int, int]]:
        """Where each turn of the model begins and ends among the tokens of a completion; one without an environment."""
        if self.turns_N is None:
            return [(0, int(self.completion_lengths_R[index]))]
        turns = self.of_rollout(index, self.turns_N)
        numbers = np.unique(turns[turns > 0])
        return [(int(p[0]), int(p[-1]) + 1) for p in (np.flatnonzero(turns == number) for number in numbers)]

    @cached_property
    def num_turns_R(self) -> np.ndarray:
        """Turns of the model in each completion."""
        if self.turns_N is None:
            return np.ones(len(self), dtype=np.int64)
        most_R = np.zeros(len(self), dtype=np.int64)
        np.maximum.at(most_R, self.rollout_N, self.turns_N)
        return most_R

    def by_token(self, values_R: np.ndarray) -> np.ndarray:
        """(N,): each rollout's value for all of its tokens."""
        return np.repeat(values_R, self.completion_lengths_R)

    def take(self, indices: np.ndarray | Sequence[int]) -> Self:
        """The rollouts at these indices, or where a mask over R is True, in this order."""
        rows = np.asarray(indices)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        places = {
            "R": rows,
            "N": spans(self.starts_R[rows], self.completion_lengths_R[rows]),
            "T": spans(self.prompt_starts_R[rows], (self.prompt_lengths_R + self.completion_lengths_R)[rows]),
        }
        return replace(self, **{name: column[places[name[-1]]] for name, column in self.columns()})

    def columns(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, column) of those that there are."""
        return ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None)

    @classmethod
    def concat(cls, batches: Iterable[Self]) -> Self:
        """One behind the other; all must have the same columns."""
        parts = [dict(batch.columns()) for batch in batches]
        assert all(part.keys() == parts[0].keys() for part in parts), "batches with different columns"
        return cls(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def behind(self, prompts: Sequence[Sequence[int]]) -> Self:
        """The same completions behind other prompts, one a rollout."""
        completions = [self.completion(i) for i in range(len(self))]
        lengths_R = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        tokens_T = _flat([ids for pair in zip(prompts, completions, strict=True) for ids in pair], np.int32)
        return replace(self, tokens_T=tokens_T, prompt_lengths_R=lengths_R)


def encoded(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns as numbers, to be sent: texts become their bytes and the length of each (−1: None)."""
    found = {}
    for name, column in columns.items():
        if column.dtype != object:
            found[name] = column
            continue
        texts = [None if text is None else text.encode("utf-8", "surrogatepass") for text in column]
        found[f"{name}/lengths"] = np.array([-1 if text is None else len(text) for text in texts], dtype=np.int64)
        found[f"{name}/bytes"] = np.frombuffer(b"".join(filter(None, texts)), dtype=np.uint8)
    return found


def decoded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `encoded`."""
    found = {name: column for name, column in arrays.items() if "/" not in name}
    for name in [name.removesuffix("/lengths") for name in arrays if name.endswith("/lengths")]:
        lengths, data = arrays[f"{name}/lengths"].tolist(), arrays[f"{name}/bytes"].tobytes()
        ends = np.cumsum(np.maximum(lengths, 0)).tolist()
        texts = [data[end - n : end] if n >= 0 else None for n, end in zip(lengths, ends, strict=True)]
        found[name] = text_column(None if text is None else text.decode("utf-8", "surrogatepass") for text in texts)
    return found


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … for each start, `length` of them, one behind the other. int64."""
    return np.repeat(starts - _starts(lengths), lengths) + np.arange(lengths.sum())


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _flat(rows: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=dtype) for row in rows]) if len(rows) else np.zeros(0, dtype)


def text_column(values: Iterable[str | None]) -> np.ndarray:
    """(R,) object: texts, or None where there is none."""
    column = list(values)
    array = np.empty(len(column), dtype=object)
    array[:] = column
    return array


_ZERO = np.zeros(1, dtype=np.float32)
# Carries no gradient; runs where another rank has a micro-batch more, and so has every column that a loss may ask for.
FILLER = Rollouts.of([[0]], [[0]], credits_N=_ZERO, old_logprobs_N=_ZERO, ref_logprobs_N=_ZERO)
