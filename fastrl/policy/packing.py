"""Which rollouts run together: mini-batches of whole prompts, micro-batches within a token budget, shares for ranks."""

import heapq
import math
from collections.abc import Sequence

import numpy as np

from fastrl.policy.micro_batch import num_inputs_R
from fastrl.rollouts import Rollouts

UNIT_SHARE = 8  # rollouts of one prompt that stay together fill at most this part of a micro-batch


def cut_mini_batches(rollouts: Rollouts, num_updates: int) -> list[np.ndarray]:
    """Indices of the rollouts of each update: whole prompts, in their order."""
    groups, group_R = np.unique(rollouts.groups_R, return_inverse=True)
    mini_batch_R = group_R * num_updates // max(len(groups), 1)
    return [np.flatnonzero(mini_batch_R == index) for index in range(num_updates)]


def cut_micro_batches(
    rollouts: Rollouts, token_budget: int, *, is_packed: bool, num_ranks: int = 1
) -> list[np.ndarray]:
    """Indices grouped so that the tokens computed are ≤ token_budget; longest first; every index appears once.

    Packed: rollouts of one prompt stay together while they are a small part of a micro-batch. There are then as few
    micro-batches as first-fit-decreasing makes, of equal size where possible, and a multiple of num_ranks of them where
    there is enough to share out. Padded: neighbours in length. ValueError when a single sequence exceeds the budget.
    """
    lengths = num_inputs_R(rollouts).tolist()
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if order and lengths[order[0]] > token_budget:
        raise ValueError(
            f"a sequence of {lengths[order[0]]} tokens does not fit batch.micro_batch_tokens={token_budget}; "
            "raise the budget or shorten prompts or sampler.max_new_tokens"
        )
    if not order:
        return []
    if not is_packed:
        return [np.array(part) for part in _cut_padded(order, lengths, token_budget)]
    prompts, keys = rollouts.prompt_lengths_R.tolist(), rollouts.prompt_keys_R.tolist()
    units = _units(order, lengths, prompts, keys, min(token_budget, sum(lengths) // num_ranks) // UNIT_SHARE)
    sizes = [prompts[unit[0]] + sum(lengths[i] - prompts[i] for i in unit) for unit in units]
    parts = _cut_packed(sizes, token_budget, num_ranks)
    return [np.array(sorted((i for u in part for i in units[u]), key=lambda i: (-lengths[i], i))) for part in parts]


def _units(order: list[int], lengths: list[int], prompts: list[int], keys: list[int], limit: int) -> list[list[int]]:
    """Indices that share a prompt, together while prompt and completions are at most `limit` tokens."""
    units: list[list[int]] = []
    rooms: dict[int, int] = {}  # by prompt: what its last unit can still take
    last: dict[int, list[int]] = {}
    for i in order:
        key, own = keys[i], lengths[i] - prompts[i]
        if rooms.get(key, -1) < own:
            rooms[key], last[key] = limit - prompts[i], []
            units.append(last[key])
        last[key].append(i)
        rooms[key] -= own
    return units


def _cut_packed(sizes: Sequence[int], token_budget: int, num_ranks: int) -> list[list[int]]:
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    fallback = _first_fit(order, sizes, token_budget)
    fewest = math.ceil(sum(sizes) / token_budget)
    for count in range(fewest + -fewest % num_ranks, len(fallback) + num_ranks, num_ranks):
        if count <= len(sizes) and (balanced := _balance(order, sizes, token_budget, count)):
            return balanced
    return fallback


def spread(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Indices of `sizes` in num_parts lists of nearly equal sums, each in ascending order."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return [sorted(part) for part in _balance(order, sizes, sum(sizes), num_parts)]


def _first_fit(order: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Each sequence into the first micro-batch with room for it."""
    rooms: list[int] = []
    parts: list[list[int]] = []
    for i in order:
        place = next((p for p, room in enumerate(rooms) if room >= lengths[i]), None)
        if place is None:
            place = len(rooms)
            rooms.append(token_budget)
            parts.append([])
        parts[place].append(i)
        rooms[place] -= lengths[i]
    return parts


def _balance(order: list[int], lengths: Sequence[int], token_budget: int, count: int) -> list[list[int]] | None:
    """Each sequence into the emptiest of `count` micro-batches; None where one overflows."""
    heap = [(0, part) for part in range(count)]
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        used, part = heap[0]
        if used + lengths[i] > token_budget:
            return None
        parts[part].append(i)
        heapq.heapreplace(heap, (used + lengths[i], part))
    return parts


def _cut_padded(order: list[int], lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in order:
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > token_budget:
            parts.append([i])
        else:
            parts[-1].append(i)
    return parts
