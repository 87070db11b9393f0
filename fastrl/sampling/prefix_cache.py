"""Proof that no sequence read keys and values that an earlier call, under older weights, had left in the cache.

Samples of one prompt read each other's prompt; different prompts read what they have in common. So within a call that
began with an empty cache, the least that any sample of a prompt read from the cache cannot exceed the longest prefix
that this prompt shares with another one of the call: whoever came first had nothing else to read. More is a left-over.
"""

from itertools import pairwise

from fastrl.sampling.protocol import StaleWeightsError


def common_length(a: list[int], b: list[int]) -> int:
    """Number of leading tokens that a and b share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def longest_shared_prefixes(prompts: list[list[int]]) -> list[int]:
    """For each prompt the most leading tokens that it shares with any other one (equal prompts: all of them)."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    shared = [0] * len(prompts)
    for i, j in pairwise(order):  # in sorted order the closest relative is a neighbour
        length = common_length(prompts[i], prompts[j])
        shared[i], shared[j] = max(shared[i], length), max(shared[j], length)
    return shared


def check_cache_reads(prompts: list[list[int]], cached_tokens: list[list[int]]) -> None:
    """StaleWeightsError when a prompt read more from the cache than this call can have put there.

    cached_tokens[i] has, for each sample of prompts[i], the number of its prompt tokens that came from the cache.
    """
    for prompt, shared, cached in zip(prompts, longest_shared_prefixes(prompts), cached_tokens, strict=True):
        if min(cached) > shared:
            raise StaleWeightsError(
                f"a prompt of {len(prompt)} tokens read {min(cached)} of them from vLLM's prefix cache, but shares "
                f"only {shared} with the others of this call: the cache still held keys and values from before the "
                "last update; look at reset_prefix_cache in this version of vLLM, or turn prefix caching off"
            )
