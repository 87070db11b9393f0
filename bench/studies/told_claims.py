"""What is said of a policy that is told what was wrong, or what would have been right, as measurements (tier 9)."""

from claims import Claim
from measures import against_base, between, pass_at

CRITIQUE, DIRECTED = "Critique-GRPO (2506.03106)", "SDPO (2601.20802), OpenClaw-RL (2603.10165)"
ALONE, REDRAW, NSR = "tier9.alone", "tier9.redraw", "tier9.nsr"
VERDICT, RULES, MODEL, ANSWER = (f"tier9.critique-{critic}" for critic in ("verdict", "rules", "model", "answer"))
DIRECTIVE, BOTH, TENTH = (f"tier9.{name}" for name in ("directive", "nsr-directive", "nsr-directive-0.1"))


def _higher(source: str, text: str, a: str, b: str, k: int = 1) -> Claim:
    return Claim(source, text, "higher", between(a, b, pass_at(k)))


TOLD_CLAIMS = [
    _higher(CRITIQUE, "critiques that name the error are above no second tries at k = 1", RULES, ALONE),
    _higher(CRITIQUE, "and above second tries that are told nothing", RULES, REDRAW),
    _higher(CRITIQUE, "a model's own critiques are above second tries that are told nothing", MODEL, REDRAW),
    _higher(CRITIQUE, "right or wrong alone is above second tries that are told nothing", VERDICT, REDRAW),
    _higher(CRITIQUE, "naming the error is above right or wrong", RULES, VERDICT),
    _higher(CRITIQUE, "the answer in the critique is above right or wrong", ANSWER, VERDICT),
    _higher(CRITIQUE, "and in the tail, k = 64", ANSWER, VERDICT, 64),
    Claim(DIRECTED, "a correct sibling as teacher gains at k = 1", "higher", against_base(DIRECTIVE, pass_at(1))),
    _higher(DIRECTED, "NSR with the directive is above NSR at k = 1", BOTH, NSR),
    _higher(DIRECTED, "and at a tenth of its weight", TENTH, NSR),
    _higher(DIRECTED, "at a tenth of its weight it is above NSR at k = 64", TENTH, NSR, 64),
]
