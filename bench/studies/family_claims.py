"""What is said of the methods of tier 4, each as a measurement beside what it claims to improve (family.py)."""

from claims import Claim
from measures import against_base, between, between_at_equal_pass_at_1, entropy, pass_at

ANCHOR, GSPO, DAPO, ASYMRE = "PMPO (2410.04166)", "GSPO (2507.18071)", "DAPO (2503.14476)", "AsymRE (2506.20520)"
WEIGHED = {
    "a-nsr": ("A-NSR (2605.07137)", "tier1.w-reinforce-0.1", "W-REINFORCE 0.1"),
    "a-nsr.alone": ("A-NSR (2605.07137)", "tier1.nsr", "NSR"),
    "cw-nsr": ("CW-NSR (2605.07137)", "tier1.nsr", "NSR"),
    "high-entropy": ("80/20 rule (2506.01939)", "tier1.nsr", "NSR"),
}


def _weighed(name: str) -> list[Claim]:
    """A factor beside the same objective without it, at equal steps and at equal pass@1."""
    source, plain, objective = WEIGHED[name]
    cell = f"tier4.{name}"
    near = between_at_equal_pass_at_1(cell, plain, 64, 0.95)
    return [
        Claim(source, f"{name} is above {objective} at k = 1", "higher", between(cell, plain, pass_at(1))),
        Claim(source, f"{name} is above {objective} at k = 64", "higher", between(cell, plain, pass_at(64))),
        Claim(source, f"at equal pass@1 {name} is above {objective} at k = 64", "higher", near),
    ]


NSR, REJECT = "tier4.base200.nsr", "tier4.base200.pmpo.reject"
FAMILY = [
    Claim(ANCHOR, "from the weak base (two seeds) NSR declines at k = 1", "lower", against_base(NSR, pass_at(1))),
    Claim(
        ANCHOR,
        "a KL penalty of 0.1 holds NSR up: above plain NSR at k = 1",
        "higher",
        between("tier4.base200.nsr.kl0.1", NSR, pass_at(1)),
    ),
    Claim(
        ANCHOR,
        "with a KL penalty of 0.1 NSR gains at k = 1",
        "higher",
        against_base("tier4.base200.nsr.kl0.1", pass_at(1)),
    ),
    Claim(
        ANCHOR,
        "and keeps the base's tail, k = 64",
        "same",
        against_base("tier4.base200.nsr.kl0.1", pass_at(64)),
    ),
    Claim(
        ANCHOR,
        "a KL penalty of 1 does: above plain NSR at k = 1",
        "higher",
        between("tier4.base200.nsr.kl1", NSR, pass_at(1)),
    ),
    Claim(
        ANCHOR,
        "with a KL penalty of 1 NSR gains at k = 1",
        "higher",
        against_base("tier4.base200.nsr.kl1", pass_at(1)),
    ),
    Claim(ANCHOR, "negatives alone with β = 1.2 > 1 − α gain at k = 1", "higher", against_base(REJECT, pass_at(1))),
    Claim(
        ANCHOR,
        "with β = 0.5 < 1 − α they do worse",
        "lower",
        between("tier4.base200.pmpo.reject.unbounded", REJECT, pass_at(1)),
    ),
    Claim(
        ANCHOR,
        "positives beside them (α = 0.5) do better at k = 1",
        "higher",
        between("tier4.base200.pmpo", REJECT, pass_at(1)),
    ),
    Claim(GSPO, "GSPO is above GRPO at k = 1", "higher", between("tier4.gspo", "tier4.grpo.sequence-mean", pass_at(1))),
    Claim(GSPO, "and at k = 64", "higher", between("tier4.gspo", "tier4.grpo.sequence-mean", pass_at(64))),
    Claim(
        DAPO,
        "clip-higher keeps entropy",
        "higher",
        between("tier4.dapo", "tier4.dapo.no-clip-higher", entropy),
        "nats",
    ),
    Claim(
        DAPO,
        "clip-higher lifts k = 64",
        "higher",
        between("tier4.dapo", "tier4.dapo.no-clip-higher", pass_at(64)),
    ),
    Claim(
        DAPO,
        "dynamic sampling lifts k = 1 at equal steps",
        "higher",
        between("tier4.dapo", "tier4.dapo.no-dynamic-sampling", pass_at(1)),
    ),
    Claim(
        ASYMRE,
        "with stale rollouts δ = −0.1 is above δ = 0 at k = 1",
        "higher",
        between("tier4.asymre.delta-0.1", "tier4.asymre.delta+0", pass_at(1)),
    ),
    Claim(
        ASYMRE,
        "δ = +0.1 is below δ = 0 at k = 1",
        "lower",
        between("tier4.asymre.delta+0.1", "tier4.asymre.delta+0", pass_at(1)),
    ),
    *(claim for name in WEIGHED for claim in _weighed(name)),
]
