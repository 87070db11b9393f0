"""Where the tokens of a micro-batch lie on their row, and which of them each one sees.

A segment is a run of tokens that see themselves causally and, all of them, one earlier segment, their prefix. A
completion's prefix is its prompt, which lies on the row once however many completions it has: its hidden states do not
depend on what follows. Flash kernels take that as queries and keys of different lengths, aligned at their ends;
scaled_dot_product_attention takes buckets of similar segments, padded to the longest and masked.

Legend: T tokens of the row, K keys, C segments of a bucket, L their longest, P their longest prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastrl.kernels.rows import to_device

PADDED_SHARE = 0.25  # of the scores of a bucket that may be padding, …
PADDED_SCORES = 4096  # … or this many, which cost less than another call
RAGGED_SCORES = 1 << 22  # segments of different lengths bring a mask each: no more than this together


@dataclass(frozen=True)
class Bucket:
    """Neighbouring segments that are attended in one call.

    lengths_C, prefix_lengths_C: without padding; prefixes_C: which of the row's prefixes they continue, if any.
    """

    lengths_C: tuple[int, ...]
    prefix_lengths_C: tuple[int, ...]
    prefixes_C: tuple[int, ...]
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths_C)

    @property
    def prefix_length(self) -> int:
        """P; 0 where the segments continue nothing."""
        return max(self.prefix_lengths_C)

    @cached_property
    def prefix_index_C(self) -> Tensor:
        return _index(self.prefixes_C, self.device)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor] | None:
        """(padded places → tokens, tokens → padded places), padding being a segment's start; None without padding."""
        longest = max(self.lengths_C)
        if min(self.lengths_C) == longest:
            return None
        lengths_C1, offsets_L = np.array(self.lengths_C)[:, None], np.arange(longest)
        starts_C1 = lengths_C1.cumsum(0) - lengths_C1
        is_token_CL = offsets_L < lengths_C1
        tokens = starts_C1 + np.where(is_token_CL, offsets_L, 0)
        return _index(tokens.ravel(), self.device), _index(is_token_CL.ravel().nonzero()[0], self.device)

    def padded(self, x: Tensor) -> Tensor:
        """(tokens of the bucket, …) → (C,L,…)"""
        if self._places is not None:
            x = x.index_select(0, self._places[0])
        return x.unflatten(0, (len(self.lengths_C), -1))

    def unpadded(self, x_CL: Tensor) -> Tensor:
        """(C,L,…) → (tokens of the bucket, …)"""
        x = x_CL.flatten(0, 1)
        return x if self._places is None else x.index_select(0, self._places[1])

    @cached_property
    def _masks(self) -> dict[int | None, Tensor | None]:
        return {}

    def mask(self, window: int | None) -> Tensor | None:
        """(C or 1, 1, L, P + L) bool, True where a key may be seen; None where plain causal attention is the same."""
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        longest, prefix_longest = max(self.lengths_C), self.prefix_length
        has_window = window is not None and window < prefix_longest + longest
        if not prefix_longest and not has_window:
            return None
        is_even = min(self.prefix_lengths_C) == prefix_longest
        prefixes_C1 = torch.tensor(self.prefix_lengths_C[:1] if is_even else self.prefix_lengths_C).unsqueeze(1)
        own_L, offsets_P = torch.arange(longest), torch.arange(prefix_longest)
        queries_CL1 = (prefixes_C1 + own_L).unsqueeze(2)
        keys_CK = torch.cat([offsets_P.expand(len(prefixes_C1), -1), prefixes_C1 + own_L], dim=1)
        is_key_CK = torch.cat([offsets_P < prefixes_C1, torch.ones_like(prefixes_C1 + own_L, dtype=torch.bool)], dim=1)
        mask = is_key_CK.unsqueeze(1) & (keys_CK.unsqueeze(1) <= queries_CL1)
        if has_window:
            mask &= keys_CK.unsqueeze(1) > queries_CL1 - window
        return to_device(mask.unsqueeze(1), self.device)


@dataclass(frozen=True)
class Layout:
    """Segments of `lengths` in the order of the row, on its device. The first `num_prefixes` are prefixes of others.

    prefixes: the index of the segment that each one continues, or None; segments with a prefix come last.
    """

    lengths: tuple[int, ...]
    prefixes: tuple[int | None, ...]
    num_prefixes: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def to(self, device: torch.device) -> "Layout":
        return Layout(self.lengths, self.prefixes, self.num_prefixes, device)

    def _prefix_length(self, segment: int) -> int:
        prefix = self.prefixes[segment]
        return 0 if prefix is None else self.lengths[prefix]

    @cached_property
    def query_starts(self) -> Tensor:
        """(S+1,) int32: where each segment starts, and where the last ends."""
        return _starts(self.lengths, self.device)

    @cached_property
    def key_starts(self) -> Tensor:
        """(S+1,) int32: the same for what each segment sees, its prefix and itself."""
        if not self.num_prefixes:
            return self.query_starts
        lengths = [self._prefix_length(i) + length for i, length in enumerate(self.lengths)]
        return _starts(lengths, self.device)

    @cached_property
    def longest(self) -> tuple[int, int]:
        """(queries, keys) of a segment, at most."""
        return max(self.lengths), max(self._prefix_length(i) + length for i, length in enumerate(self.lengths))

    @cached_property
    def key_places_K(self) -> Tensor | None:
        """Places of the keys on the row, segment after segment; None where they are the row."""
        if not self.num_prefixes:
            return None
        seen = [j for i, p in enumerate(self.prefixes) for j in ([i] if p is None else [p, i])]
        lengths = np.array(self.lengths)
        starts_seen, lengths_seen = (lengths.cumsum() - lengths)[seen], lengths[seen]
        firsts = lengths_seen.cumsum() - lengths_seen
        return _index(np.repeat(starts_seen - firsts, lengths_seen) + np.arange(lengths_seen.sum()), self.device)

    @cached_property
    def prefix_bucket(self) -> Bucket | None:
        """The prefixes as one bucket; None where there are none."""
        if not self.num_prefixes:
            return None
        return Bucket(self.lengths[: self.num_prefixes], (0,) * self.num_prefixes, (), self.device)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """All segments, in the order of the row."""
        return tuple(self._buckets())

    def _buckets(self) -> Iterator[Bucket]:
        first, scores, longest, prefix_longest = 0, 0, 0, 0
        for i, length in enumerate(self.lengths):
            prefix = self._prefix_length(i)
            grown, grown_prefix = max(longest, length), max(prefix_longest, prefix)
            own = length * (length + prefix)
            padded = (i + 1 - first) * grown * (grown + grown_prefix)
            if i > first and not (
                (self.prefixes[i] is None) == (self.prefixes[first] is None) and _is_little(padded, scores + own)
            ):
                yield self._bucket(first, i)
                first, scores, grown, grown_prefix = i, 0, length, prefix
            longest, prefix_longest, scores = grown, grown_prefix, scores + own
        if self.lengths:
            yield self._bucket(first, len(self.lengths))

    def _bucket(self, start: int, stop: int) -> Bucket:
        prefixes = tuple(p for p in self.prefixes[start:stop] if p is not None)
        prefix_lengths = tuple(self._prefix_length(i) for i in range(start, stop))
        return Bucket(self.lengths[start:stop], prefix_lengths, prefixes, self.device)


def _is_little(padded: int, scores: int) -> bool:
    """Whether a bucket of `padded` scores, of which `scores` are asked for, is better than two."""
    waste = padded - scores
    return waste == 0 or (padded <= RAGGED_SCORES and waste <= max(PADDED_SCORES, PADDED_SHARE * padded))


def _index(values: np.ndarray | tuple[int, ...], device: torch.device) -> Tensor:
    return to_device(torch.tensor(values, dtype=torch.int64), device)


def _starts(lengths: tuple[int, ...] | list[int], device: torch.device) -> Tensor:
    return to_device(pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)), device)
