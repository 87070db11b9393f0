"""What a verdict counts as: the one rule for training, its metrics, evaluations, the ledger and `fastrl verify`."""

import math
from dataclasses import dataclass
from typing import Literal

TruncationRule = Literal["wrong", "mask", "judged"]


@dataclass(frozen=True)
class Correctness:
    """threshold: correct means reward ≥ this. truncated: what becomes of a completion that was cut at the token limit:

    wrong    it is not correct, and earns no more than 0 and no more than its verdict
    judged   it counts like any other
    mask     as judged; training gives it no gradient
    """

    threshold: float = 1.0
    truncated: TruncationRule = "wrong"

    def reward(self, verdict: float | None, *, is_truncated: bool) -> float | None:
        """The reward that a verdict counts as; None, where the verifier broke, stays None."""
        if verdict is None or not is_truncated or self.truncated != "wrong":
            return verdict
        return min(verdict, 0.0, math.nextafter(self.threshold, -math.inf))

    def is_correct(self, reward: float | None) -> bool:
        """Of a reward as it counts. A missing one is not correct; whoever forms a share leaves it out."""
        return reward is not None and reward >= self.threshold
