"""When a verdict counts as correct: one rule for training, its metrics, evaluations, the ledger and `fastrl verify`."""

import math
from dataclasses import dataclass
from typing import Any, Literal

TruncationRule = Literal["wrong", "mask", "judged"]


@dataclass(frozen=True)
class Correctness:
    """When a reward counts as correct, and what becomes of a completion that was cut at the token limit.

    threshold: a completion is correct when its reward is at least this.
    truncated:
        wrong    a cut completion is not correct; its reward is at most 0, and at most its verdict
        judged   it counts like any other
        mask     as judged, but training gives it no gradient
    """

    threshold: float = 1.0
    truncated: TruncationRule = "wrong"

    def reward(self, verdict: float | None, *, is_truncated: bool) -> float | None:
        """The reward that counts for a verdict; None (the verifier failed) stays None."""
        if verdict is None or not is_truncated or self.truncated != "wrong":
            return verdict
        return min(verdict, 0.0, math.nextafter(self.threshold, -math.inf))

    def are_correct(self, rewards: Any) -> Any:
        """Of an array of rewards as they count, one by one; NaN, a missing one, is not correct."""
        return rewards >= self.threshold

    def is_correct(self, reward: float | None) -> bool:
        """Whether a reward, as it counts, is correct. A missing one is not; leave it out before you form a share."""
        return reward is not None and reward >= self.threshold
