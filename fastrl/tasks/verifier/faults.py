"""When the verifier is broken, rather than a completion hostile: too many faults, or too many limits hit.

One completion of many may make any verifier hang, run out of memory or crash; that completion gets 0. A verifier that
does so again and again says nothing about completions. A completion that hit a limit counts even if a fresh worker
could judge it afterwards. Where the reward judges groups, each group counts once.
"""

from collections import Counter

MAX_FAULT_SHARE = 0.01
MAX_LIMIT_SHARE = 0.03
MIN_LIMIT_HITS = 4  # so many of a small batch may hit limits, if not all
MIN_SCORED = 200  # shares of all completions, and the one of faults in a batch, are of at least so many
LIMIT_REASONS = ("timeout", "memory", "recursion", "crashed")

_ADVICE = {
    "timeout": "raise task.timeout_s or make the reward faster",
    "memory": "raise task.memory_mb or make the reward hold less",
    "recursion": "mend the reward's recursion",
    "crashed": "mend what ends the reward's process",
}


class VerifierError(RuntimeError):
    """The verifier itself is broken; no completion is to blame."""


def check_faults(num_faults: int, num: int, what: str, last_fault: str) -> None:
    """VerifierError when more than 1 % of `num` completions or groups (of at least 200) got no reward."""
    if num_faults > MAX_FAULT_SHARE * max(num, MIN_SCORED):
        raise VerifierError(
            f"the verifier itself failed on {num_faults} of {num} {what} (more than "
            f"{MAX_FAULT_SHARE:.0%}); the last time: {last_fault}"
        )


def most_of_batch(num: int) -> float:
    """How many completions of a batch may hit limits: 3 %, or 4 if that is not all of them; one alone may."""
    return min(max(MAX_LIMIT_SHARE * num, MIN_LIMIT_HITS), max(num - 1, 1))


def most_so_far(num: int) -> float:
    """How many of all completions so far may have hit limits: 3 % of at least 200."""
    return MAX_LIMIT_SHARE * max(num, MIN_SCORED)


def check_limits(limits: Counter[str], num: int, what: str, most: float, settings: str) -> None:
    """VerifierError when more of `num` completions or groups than `most` hit a limit; limits: how many by reason."""
    if limits.total() > most:
        shown = ", ".join(f"{count} {reason}" for reason, count in limits.most_common())
        raise VerifierError(
            f"the verifier hit its limits on {limits.total()} of {num} {what} ({shown}; {settings}), too many to be "
            f"the completions' doing: {_ADVICE[limits.most_common(1)[0][0]]}"
        )
