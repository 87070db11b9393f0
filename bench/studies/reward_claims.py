"""What is said of the rewards of tier 5, each measured beside the reward that it is compared with (cells.py)."""

import numpy as np
from claims import Claim
from measures import Quantity, against_base, between, pass_at

TRUTHRL, RLCR = "TruthRL (2509.25760)", "RLCR (2507.16806)"
TTRL, SPURIOUS, ONE_SHOT = "TTRL (2504.16084)", "spurious rewards (2506.10947)", "one-shot (2504.20571)"


def measured(name: str) -> Quantity:
    """One of an evaluation's named measures, such as hallucination: one number a run, a band over seeds alone."""
    return lambda row: np.array([row["measures"][name]])


def _truth(a: str, b: str, name: str, predicts: str) -> Claim:
    """A measure of a − b; both are cells of the part `truthrl`."""
    cells = f"tier5.truthrl.{a}", f"tier5.truthrl.{b}"
    return Claim(TRUTHRL, f"{name}: {a} is {predicts} than {b}", predicts, between(*cells, measured(name)))


def _calibration(name: str, predicts: str) -> Claim:
    cells = "tier5.rlcr.confidence", "tier5.rlcr.verifier"
    difference = between(*cells, measured(f"calibration/{name}"))
    return Claim(RLCR, f"{name}: {predicts} with the stated confidence rewarded", predicts, difference)


def _gain(source: str, text: str, cell: str, predicts: str) -> Claim:
    return Claim(source, text, predicts, against_base(f"tier5.{cell}", pass_at(1)))


REWARDED = [
    _truth("ternary", "binary", "hallucination", "lower"),
    _truth("ternary", "binary", "truthfulness", "higher"),
    _truth("ternary", "binary", "abstained_unsolvable", "higher"),
    _truth("nsr-ternary", "nsr", "hallucination", "lower"),
    _truth("nsr-ternary", "nsr", "truthfulness", "higher"),
    _truth("nsr-ternary", "ternary", "truthfulness", "lower"),
    _calibration("ece", "lower"),
    _calibration("brier", "lower"),
    _calibration("auroc", "higher"),
    Claim(
        RLCR,
        "and accuracy stays",
        "same",
        between("tier5.rlcr.confidence", "tier5.rlcr.verifier", pass_at(1)),
    ),
    _gain(TTRL, "votes instead of labels gain at k = 1", "ttrl.majority", "higher"),
    Claim(TTRL, "and reach the verifier's", "same", between("tier5.ttrl.majority", "tier5.ttrl.verifier", pass_at(1))),
    _gain(TTRL, "also from a base (200 steps) whose majority is mostly wrong", "ttrl.base200.majority", "higher"),
    _gain(ONE_SHOT, "one problem is enough for GRPO to gain at k = 1", "spurious.one-problem", "higher"),
    Claim(
        ONE_SHOT,
        "as much as the whole set does under GRPO at k = 1",
        "same",
        between("tier5.spurious.one-problem", "tier1.grpo", pass_at(1)),
    ),
    _gain(SPURIOUS, "a coin gains at k = 1", "spurious.coin", "higher"),
    _gain(SPURIOUS, "a coin without clipping does not", "spurious.coin-free", "same"),
    Claim(
        SPURIOUS,
        "and ends below the clipped one",
        "lower",
        between("tier5.spurious.coin-free", "tier5.spurious.coin", pass_at(1)),
    ),
    _gain(SPURIOUS, "a reward for the format gains at k = 1", "spurious.format", "higher"),
    _gain(SPURIOUS, "paying for what is wrong gains at k = 1", "spurious.inverted", "higher"),
    _gain(SPURIOUS, "the most frequent wrong answer gains at k = 1", "spurious.majority-wrong", "higher"),
]
