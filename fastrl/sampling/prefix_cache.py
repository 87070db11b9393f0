"""Proof that no sequence read keys and values that an earlier call, under older weights, had left in the cache.

Samples of one prompt share its keys and values; different prompts share those of a common prefix. If a call begins with
an empty cache, the first sample of a prompt finds only what other prompts of the call have left there: at most their
longest common prefix. If all samples of a prompt read more than that, the cache was not empty.
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
