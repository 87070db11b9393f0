"""Which Triton row kernel runs, in which shape, and why.

`triton_cluster` reads a row once, where the registers of a cluster hold it; else `triton_kernels` sweeps over it, once
to score and twice for a gradient. Chosen from what ahead-of-time compilation says: a shape that spills is not used.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton

SWEEP_BLOCK_V = {True: 8192, False: 4096}  # with a second sweep; scoring
THREAD_ELEMENTS = {True: 8, False: 16}  # of a sweep's block, in the registers of one thread
VECTOR_BYTES = 16  # of a tile, in the registers of one thread
WARP = 32
HAS_RUN_ON_A_GPU = False  # `triton_cluster`: compiled and interpreted so far. What nobody has seen run is no default.
CLUSTERS = ((1, 8), (2, 8), (4, 8), (8, 8), (1, 16), (8, 16))  # (CTAs, warps of each): 8 warps leave room for two rows
MAX_TILES, MAX_TAIL_TILES = 10, 5  # what threads hold without spilling; a head's tail needs registers of its own


@dataclass(frozen=True)
class Launch:
    """options: the kernel's constants of size and Triton's num_warps and num_ctas. reason: one phrase for people."""

    is_cluster: bool
    options: dict[str, int]
    reason: str


def sweep_options(vocab: int, *, has_second_sweep: bool) -> dict[str, int]:
    """BLOCK_V and num_warps of the sweeping kernels.

    With a second sweep one row fills a multiprocessor; shapes differ by 10 % there. Scoring, which has one sweep, runs
    best with few warps: while one row computes, another waits for memory (bench/LOG.md, 2026-11-28).
    """
    block = min(SWEEP_BLOCK_V[has_second_sweep], triton.next_power_of_2(vocab))
    return {"BLOCK_V": block, "num_warps": max(1, block // (WARP * THREAD_ELEMENTS[has_second_sweep]))}


def cluster_options(vocab: int, itemsize: int, max_tiles: int, max_ctas: int) -> dict[str, int] | None:
    """TILE_V, NUM_TILES, num_warps and num_ctas that hold a row in registers; None where none of CLUSTERS does."""
    vector = VECTOR_BYTES // itemsize
    for num_ctas, num_warps in CLUSTERS:
        num_warps = min(num_warps, max(1, triton.next_power_of_2(vocab) // (WARP * vector)))
        tile = num_ctas * num_warps * WARP * vector
        num_tiles = triton.cdiv(vocab, tile)
        if num_tiles <= max_tiles and num_ctas <= max_ctas:
            return {"TILE_V": tile, "NUM_TILES": num_tiles, "num_warps": num_warps, "num_ctas": num_ctas}
    return None


@cache
def cluster_problem(device: torch.device) -> str:
    """Why clusters of several CTAs cannot run there; empty where they can."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
        return f"clusters need Triton 3.9, this is {triton.__version__}"
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < (9, 0):
        return f"clusters need sm_90, this is sm_{found[0]}{found[1]}"
    return ""


@cache
def choose_launch(
    vocab: int,
    itemsize: int,
    device: torch.device,
    *,
    with_gradient: bool,
    has_tail: bool = False,
    has_bias: bool = False,
) -> Launch:
    """For rows of `vocab` logits of `itemsize` bytes. has_tail: the head has a bias, a scale or a softcap."""
    problem, sweeps = cluster_problem(device), sweep_options(vocab, has_second_sweep=with_gradient)
    if not with_gradient:
        return Launch(False, sweeps, "one sweep")
    if device.type == "cuda" and not HAS_RUN_ON_A_GPU:
        return Launch(False, sweeps, "two sweeps: the kernel that reads a row once has not run on a GPU so far")
    if has_bias:
        return Launch(False, sweeps, "two sweeps: with a head's bias a cluster's registers spill")
    options = cluster_options(vocab, itemsize, MAX_TAIL_TILES if has_tail else MAX_TILES, 1 if problem else 8)
    if options is None:
        return Launch(False, sweeps, f"two sweeps: {problem or 'the registers of a cluster do not hold a row'}")
    return Launch(True, options, f"one read: {options['num_ctas']} CTAs hold a row in registers")
