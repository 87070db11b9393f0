"""A penalty for length, added to rewards before they are compared (DAPO, arXiv:2503.14476, eq. 13)."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge


@dataclass(frozen=True)
class Overlong:
    """min(0, (L_max − buffer − length) / buffer) · penalty: linear over the last `buffer` tokens before the limit."""

    buffer: Annotated[int, Ge(0)] = 0
    """Tokens before sampler.max_new_tokens over which the penalty grows; 0: none."""
    penalty: Annotated[float, Ge(0)] = 1.0
    """Reward taken from a completion of full length."""

    def __call__(self, lengths_R: np.ndarray, max_new_tokens: int) -> np.ndarray:
        """(R,) float64 ≤ 0, of completions of lengths_R tokens under a limit of max_new_tokens."""
        if not self.buffer:
            return np.zeros(len(lengths_R))
        return self.penalty * np.minimum(0.0, (max_new_tokens - self.buffer - lengths_R) / self.buffer)
