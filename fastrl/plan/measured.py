"""Points that were measured on a GPU, and the share of the card's peak that each one reached.

A compute phase reached FLOPs / (seconds · peak FLOP/s), generation bytes / (seconds · peak bytes/s), with what `flops`
counts. A phase that was measured more than once has the mean of its shares.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fastrl.plan.cards import Card, named_card
from fastrl.plan.flops import ModelShape, Sequences, decoding_bytes, scoring_flops, training_flops

Phase = Literal["generate", "score", "update"]
SOURCE = "NVIDIA H100 80GB HBM3, 2026-11-28, torch 2.11, vLLM 0.25.1, Qwen3-0.6B in bfloat16"
CARD = named_card("H100")
QWEN3_600M = ModelShape(
    block_parameters=440_466_432,
    num_layers=28,
    attention_width=2048,
    hidden_size=1024,
    vocab_size=151_936,
    kv_bytes=114_688,
    weight_bytes=2 * (440_466_432 + 1024 * 151_936),
)


@dataclass(frozen=True)
class Point:
    """seconds: the middle of what was seen."""

    phase: Phase
    sequences: Sequences
    seconds: float

    @property
    def share(self) -> float:
        """Of the card's peak."""
        return _floor_s(self.phase, QWEN3_600M, self.sequences, CARD) / self.seconds


POINTS = (  # bench/results/h100-2026-11-28
    Point("generate", Sequences(32, 256, 256, 768), 7.1),  # 6.9 to 7.3, CUDA graphs, with log-probs and seeds
    Point("score", Sequences(32, 64, 256, 768), 0.465),  # 0.45 to 0.48
    Point("update", Sequences(32, 128, 256, 768), 2.785),  # 2.70 to 2.87, beside an engine
    Point("update", Sequences(64, 64, 256, 768), 1.438),  # 45,582 tokens/s, training alone
)


def seconds(phase: Phase, shape: ModelShape, sequences: Sequences, card: Card, num_rounds: int = 1) -> float:
    """What a phase would take if it reached the share of the card's peak that was measured."""
    share = fmean(point.share for point in POINTS if point.phase == phase)
    return _floor_s(phase, shape, sequences, card, num_rounds) / share


def _floor_s(phase: Phase, shape: ModelShape, sequences: Sequences, card: Card, num_rounds: int = 1) -> float:
    if phase == "generate":
        return decoding_bytes(shape, sequences, num_rounds) / card.bytes_per_s
    flops = training_flops if phase == "update" else scoring_flops
    return flops(shape, sequences) / card.flops_per_s
