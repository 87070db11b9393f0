"""When the verifier is broken, rather than a completion hostile: a share of faults, and a share of limits hit.

One completion of many may make any verifier hang, run out of memory or crash; that completion gets 0. A verifier that
does so again and again says nothing about completions.
"""

from collections import Counter

MAX_FAULT_SHARE = 0.01
MIN_SCORED = 200  # the share of faults is of at least this many completions: two never end a run
MAX_LIMIT_SHARE = 0.03
MIN_LIMITS = 8  # so many may hit a limit in a small batch, but not more than half of it
LIMITS = ("timeout", "memory", "recursion", "crashed")

_ADVICE = {
    "timeout": "raise task.timeout_s or make the reward faster",
    "memory": "raise task.memory_mb or make the reward hold less",
    "recursion": "mend the reward's recursion",
    "crashed": "mend what ends the reward's process",
}


class VerifierError(RuntimeError):
    """The verifier itself is broken; no completion is to blame."""


def check_faults(num_scored: int, num_faults: int, last_fault: str) -> None:
    """VerifierError when more than 1 % of the completions (of at least 200) got no reward."""
    if num_faults > MAX_FAULT_SHARE * max(num_scored, MIN_SCORED):
        raise VerifierError(
            f"the verifier itself failed on {num_faults} of {num_scored} completions (more than "
            f"{MAX_FAULT_SHARE:.0%}); the last time: {last_fault}"
        )


def check_limits(num_scored: int, limits: Counter[str], settings: str) -> None:
    """VerifierError when more than 3 % of the completions hit a limit; 8 may in a small batch, but only half of it."""
    num_hit = limits.total()
    if num_hit > max(1, MAX_LIMIT_SHARE * num_scored, min(MIN_LIMITS, num_scored / 2)):
        shown = ", ".join(f"{count} {reason}" for reason, count in limits.most_common())
        raise VerifierError(
            f"the verifier hit its limits on {num_hit} of {num_scored} completions ({shown}; {settings}), too many "
            f"to be the completions' doing: {_ADVICE[limits.most_common(1)[0][0]]}"
        )
