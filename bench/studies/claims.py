"""What the paper says and what its critics say, each as a measurement with a band and a verdict.

A claim is a number that it makes a prediction about: `higher` or `lower` than 0, or `same`, which no band can prove:
there `undecided` is all that can be said for it, and the width of the band says how much that is worth.
"""

from dataclasses import dataclass

from bands import verdict
from cells import REDUCTIONS
from measures import (
    Measure,
    Pair,
    against_base,
    between,
    between_at_equal_pass_at_1,
    contrast,
    entropy,
    entropy_at_equal_pass_at_1,
    late_change,
    mean_between,
    metric_growth,
    pass_at,
)

from fastrl.statistics import Interval


@dataclass(frozen=True)
class Claim:
    """source, what is said, what it predicts, and the measurement: in points of pass@k, or in another unit."""

    source: str
    text: str
    predicts: str
    measure: Measure
    unit: str = "points"

    def row(self) -> list[str]:
        value = self.measure()
        if value is None:
            return [self.source, self.text, self.predicts, "–", "needs more runs"]
        shown = points(value) if self.unit == "points" else f"{with_band(value)} {self.unit}".strip()
        return [self.source, self.text, self.predicts, shown, judge(self.predicts, verdict(value))]


def points(value: Interval) -> str:
    """A difference of probabilities in points with its band."""
    return with_band(value, scale=100, digits=1)


def with_band(value: Interval, *, scale: float = 1, digits: int = 2) -> str:
    """A difference with its band."""
    mean, low, high = (f"{scale * v:+.{digits}f}" for v in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]".replace("-", "−")


def judge(predicts: str, found: str) -> str:
    """The verdict on a prediction."""
    if found == "undecided":
        return "undecided"
    if predicts == "same":
        return f"contradicted: {found}"
    return "supported" if predicts == found else f"contradicted: {found}"


PAPER, SLOWER, CLIP, RATE = "paper (2506.01347)", "only slower?", "issue #6", "learning rate"
PRETRAINED, WEAK, BONUS = "paper, pretrained model", "issue #19", "entropy bonus"
PSR, NSR, GRPO, WEIGHTED = "tier1.psr", "tier1.nsr", "tier1.grpo", "tier1.w-reinforce-0.1"
REAL_PSR, REAL_NSR = "real_cpu.psr", "real_cpu.nsr"


def _pair(setting: str) -> Pair:
    """NSR and PSR under one of tier 2's settings."""
    return f"tier2.nsr.{setting}", f"tier2.psr.{setting}"


def _pairs(setting: str) -> list[Pair]:
    """NSR and PSR under one of tier 2's settings, by reduction."""
    return [_pair(f"{setting}.{reduction}") for reduction in REDUCTIONS]


def _changes(objective: str, first: str, second: str) -> list[Pair]:
    """An objective under one of tier 2's settings and under another, by reduction."""
    return [(f"tier2.{objective}.{first}.{r}", f"tier2.{objective}.{second}.{r}") for r in REDUCTIONS]


CLAIMS = [
    Claim(PAPER, "NSR alone improves pass@1 over the base", "higher", against_base(NSR, pass_at(1))),
    Claim(PAPER, "NSR keeps the base's pass@256", "same", against_base(NSR, pass_at(256))),
    Claim(PAPER, "PSR improves pass@1 over the base", "higher", against_base(PSR, pass_at(1))),
    Claim(PAPER, "PSR falls below the base at k = 256", "lower", against_base(PSR, pass_at(256))),
    Claim(PAPER, "NSR is above PSR at k = 256", "higher", between(NSR, PSR, pass_at(256))),
    Claim(PAPER, "W-REINFORCE 0.1 is above PSR at k = 256", "higher", between(WEIGHTED, PSR, pass_at(256))),
    Claim(PAPER, "W-REINFORCE 0.1 is above NSR at k = 1", "higher", between(WEIGHTED, NSR, pass_at(1))),
    Claim(
        PAPER,
        "λ = 1 loses the tail: below λ = 0.1 at k = 256",
        "lower",
        between("tier1.w-reinforce-1", WEIGHTED, pass_at(256)),
    ),
    Claim(PAPER, "W-REINFORCE 0.1 is above GRPO at k = 256", "higher", between(WEIGHTED, GRPO, pass_at(256))),
    Claim(PAPER, "NSR keeps the base's entropy", "same", against_base(NSR, entropy), "nats"),
    Claim(PAPER, "NSR's entropy stays above PSR's", "higher", between(NSR, PSR, entropy), "nats"),
    Claim(
        PAPER,
        "NSR's updates stop by themselves: its gradient norm shrinks along the run (log ratio)",
        "lower",
        metric_growth(NSR, "grad_norm"),
        "",
    ),
    Claim(
        PAPER,
        "NSR declines over hundreds of steps (pass@1, 405 steps against 150)",
        "lower",
        late_change("tier3.long.nsr", 1, 150),
    ),
    Claim(PAPER, "W-REINFORCE does not", "same", late_change("tier3.long.w-reinforce-0.1", 1, 150)),
    Claim(
        PAPER,
        "NSR keeps its tail over hundreds of steps (pass@64, 405 steps against 150)",
        "same",
        late_change("tier3.long.nsr", 64, 150),
    ),
    Claim(
        PAPER,
        "after 405 steps NSR is above PSR at k = 256",
        "higher",
        between("tier3.long.nsr", "tier3.long.psr", pass_at(256)),
    ),
    Claim(
        SLOWER,
        "at equal pass@1 (95 % of the way) NSR is still above PSR at k = 64",
        "higher",
        between_at_equal_pass_at_1(NSR, PSR, 64, 0.95),
    ),
    Claim(
        SLOWER,
        "the same at k = 16, where 64 samples a problem say more",
        "higher",
        between_at_equal_pass_at_1(NSR, PSR, 16, 0.95),
    ),
    Claim(SLOWER, "at k = 64 half of the way", "higher", between_at_equal_pass_at_1(NSR, PSR, 64, 0.5)),
    Claim(
        SLOWER,
        "at equal pass@1 (95 % of the way) NSR's entropy is still above PSR's",
        "higher",
        entropy_at_equal_pass_at_1(NSR, PSR, 0.95),
        "nats",
    ),
    Claim(
        SLOWER,
        "runs of 405 steps: at equal pass@1 (95 % of the way) NSR is above PSR at k = 64",
        "higher",
        between_at_equal_pass_at_1("tier3.long.nsr", "tier3.long.psr", 64, 0.95),
    ),
    Claim(SLOWER, "NSR after 405 steps has PSR's pass@1 after 150", "same", between("tier3.long.nsr", PSR, pass_at(1))),
    Claim(SLOWER, "and is above it at k = 256", "higher", between("tier3.long.nsr", PSR, pass_at(256))),
    Claim(
        RATE,
        "at half the rate (1.5e-5) NSR is still above PSR at k = 256",
        "higher",
        between("tier3.lr1.5e-05.nsr", "tier3.lr1.5e-05.psr", pass_at(256)),
    ),
    Claim(
        RATE,
        "at one rate (3e-5) W-REINFORCE 0.1 is above GRPO at k = 256",
        "higher",
        between(WEIGHTED, "tier3.lr3e-05.grpo", pass_at(256)),
    ),
    Claim(
        RATE,
        "at one rate (1.5e-5) W-REINFORCE 0.1 is above GRPO at k = 256",
        "higher",
        between("tier3.lr1.5e-05.w-reinforce-0.1", GRPO, pass_at(256)),
    ),
    Claim(
        "baseline identity",
        "one update a batch, sequence sum: NSR and PSR agree at k = 64",
        "same",
        between(*_pair("u1.clip.sum"), pass_at(64)),
    ),
    Claim(
        CLIP,
        "NSR − PSR at k = 64 is larger with four clipped updates than with one (mean of three reductions, as below)",
        "higher",
        contrast(_pairs("u4.clip"), _pairs("u1.clip"), pass_at(64)),
    ),
    Claim(
        CLIP,
        "and larger with clipping than without (four updates)",
        "higher",
        contrast(_pairs("u4.clip"), _pairs("u4.free"), pass_at(64)),
    ),
    Claim(
        CLIP,
        "without clipping NSR loses pass@1 (four updates)",
        "lower",
        mean_between(_changes("nsr", "u4.free", "u4.clip"), pass_at(1)),
    ),
    Claim(CLIP, "and PSR does not", "same", mean_between(_changes("psr", "u4.free", "u4.clip"), pass_at(1))),
    Claim(
        CLIP,
        "one update instead of four costs NSR pass@1",
        "lower",
        mean_between(_changes("nsr", "u1.clip", "u4.clip"), pass_at(1)),
    ),
    Claim(
        CLIP,
        "one update instead of four lifts PSR at k = 64",
        "higher",
        mean_between(_changes("psr", "u1.clip", "u4.clip"), pass_at(64)),
    ),
    Claim(
        CLIP,
        "NSR's surplus of entropy is larger with four clipped updates than with one",
        "higher",
        contrast(_pairs("u4.clip"), _pairs("u1.clip"), entropy),
        "nats",
    ),
    Claim(
        CLIP,
        "that surplus is larger with clipping than without (four updates)",
        "higher",
        contrast(_pairs("u4.clip"), _pairs("u4.free"), entropy),
        "nats",
    ),
    Claim(
        "normalisation",
        "NSR − PSR at k = 64 is larger with the mean over kept tokens than over all",
        "higher",
        contrast([_pair("u4.clip.kept")], [_pair("u4.clip.all")], pass_at(64)),
    ),
    Claim(
        WEAK,
        "from a weak base (200 warm-start steps) NSR does not gain at k = 1",
        "same",
        against_base("tier3.base200.nsr", pass_at(1)),
    ),
    Claim(WEAK, "PSR does", "higher", against_base("tier3.base200.psr", pass_at(1))),
    Claim(WEAK, "from a middle one (600) NSR gains", "higher", against_base("tier3.base600.nsr", pass_at(1))),
    Claim(
        WEAK,
        "weaker bases need a larger λ: from 200 steps 0.1 is above NSR at k = 1",
        "higher",
        between("tier3.base200.w-reinforce-0.1", "tier3.base200.nsr", pass_at(1)),
    ),
    Claim(
        WEAK,
        "that is enough: from 200 steps W-REINFORCE 0.1 gains at k = 1",
        "higher",
        against_base("tier3.base200.w-reinforce-0.1", pass_at(1)),
    ),
    Claim(BONUS, "a bonus of 1e-3 lifts PSR at k = 256", "higher", between("tier3.entropy.psr", PSR, pass_at(256))),
    Claim(BONUS, "and NSR", "higher", between("tier3.entropy.nsr", NSR, pass_at(256))),
    Claim(
        BONUS,
        "with it NSR is above PSR at k = 256",
        "higher",
        between("tier3.entropy.nsr", "tier3.entropy.psr", pass_at(256)),
    ),
    Claim(
        "control", "a coin as reward teaches NSR nothing at k = 1", "same", against_base("tier3.random.nsr", pass_at(1))
    ),
    Claim(
        "control", "a coin as reward teaches PSR nothing at k = 1", "same", against_base("tier3.random.psr", pass_at(1))
    ),
    Claim(
        "control",
        "an inverted reward makes NSR worse at k = 1",
        "lower",
        against_base("tier3.inverted.nsr", pass_at(1)),
    ),
    Claim(
        "control",
        "an inverted reward makes PSR worse at k = 1",
        "lower",
        against_base("tier3.inverted.psr", pass_at(1)),
    ),
    Claim(
        "one-shot",
        "one training problem is enough for NSR to gain at k = 1",
        "higher",
        against_base("tier3.one-problem.nsr", pass_at(1)),
    ),
    Claim(
        "one-shot",
        "one training problem is enough for PSR to gain at k = 1",
        "higher",
        against_base("tier3.one-problem.psr", pass_at(1)),
    ),
    Claim(PRETRAINED, "NSR improves pass@1 over the base", "higher", against_base(REAL_NSR, pass_at(1))),
    Claim(PRETRAINED, "NSR keeps or lifts the base's pass@64", "higher", against_base(REAL_NSR, pass_at(64))),
    Claim(PRETRAINED, "PSR falls below the base at k = 64", "lower", against_base(REAL_PSR, pass_at(64))),
    Claim(PRETRAINED, "NSR is above PSR at k = 64", "higher", between(REAL_NSR, REAL_PSR, pass_at(64))),
    Claim(PRETRAINED, "NSR's entropy stays above PSR's", "higher", between(REAL_NSR, REAL_PSR, entropy), "nats"),
]
