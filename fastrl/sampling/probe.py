"""The log-prob probe: do trainer and sampler agree on the log-probs of tokens that were just sampled?

|Δlogp| of the scored rollouts is compared with its value before the first update, when both sides had just read the
same file. That value is numerics (other kernels, bfloat16); several times as much is another policy. The mean and a
high quantile can stop a run; the maximum of 10⁵ tokens is one odd token and only gives a warning. The probe sees what
pointers and checksums cannot (a cache of old keys, a kernel that packed a weight away), but one step at a small
learning rate moves log-probs by no more than rounding does: it is the second proof, not the only one.

A sampler with an fp8 KV cache is noisier (a random two-layer model: 0.046 nats instead of 0.006), and five times that
would hide a policy of several steps ago. The noise of thousands of tokens is steady, though, so there a step may lie
beyond the calibration by at most `ROOM`, however large that is. Noise m and a drift d that know nothing of each other
make about √(m² + d²): at m = 0.046 the probe sees drifts from 0.07 nats on, at m = 0.02 from 0.06. Smaller ones are
left to the proof of the weights and to the cache that every call of the engine finds empty.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from fastrl.rollouts import Rollouts
from fastrl.sampling.protocol import SamplerError, StaleWeightsError

MEAN_FACTOR, HIGH_FACTOR, MAX_FACTOR = 5.0, 10.0, 20.0  # how far beyond the calibration a step may lie
QUANTILE = 0.99  # of the scored tokens: what a stale sampler moves, a few odd tokens do not


@dataclass(frozen=True)
class Noise:
    """|Δlogp| per token in nats over the scored tokens of a step: mean, `QUANTILE` and maximum."""

    mean: float
    high: float
    max: float


# Per dtype of the weights, or of the sampler's keys and values where these are narrower: below `FLOOR` nothing is
# remarkable; above `SANE`, before any update, the two sides do not compute the same model.
FLOOR = {
    torch.float32: Noise(1e-4, 1e-3, 1e-2),
    torch.bfloat16: Noise(0.02, 0.2, 1.0),
    torch.float8_e4m3fn: Noise(0.02, 0.2, 1.0),
}
SANE_MEAN = {torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float8_e4m3fn: 0.2}
ANY = Noise(math.inf, math.inf, math.inf)
ROOM = {torch.float32: ANY, torch.bfloat16: ANY, torch.float8_e4m3fn: Noise(0.04, 0.4, 2.0)}


def measure(rollouts: Rollouts) -> Noise:
    """Noise of scored rollouts, replies left out. NaN where a log-prob is NaN; zeros without tokens."""
    if not rollouts.num_tokens:
        return Noise(0.0, 0.0, 0.0)
    gaps_N = np.abs(rollouts.own(rollouts.policy_logprobs_N.astype(np.float64) - rollouts.sampler_logprobs_N))
    return Noise(float(gaps_N.mean()), float(np.quantile(gaps_N, QUANTILE, method="higher")), float(gaps_N.max()))


class LogprobProbe:
    """`check` calibrates on the first step and compares later ones with it. state: what `state` returned.

    dtype: a key of `FLOOR`.
    """

    def __init__(self, dtype: torch.dtype, state: dict[str, float] | None = None):
        self.dtype = dtype
        self.calibration = Noise(**{"high": state["max"]} | state) if state else None  # older states lack it

    def state(self) -> dict[str, float] | None:
        """The calibration for a checkpoint, JSON-able: a resumed run compares with the beginning of the first."""
        return asdict(self.calibration) if self.calibration else None

    @property
    def limit(self) -> Noise:
        """What a calibrated probe allows."""
        seen, floor, room = self.calibration, FLOOR[self.dtype], ROOM[self.dtype]
        return Noise(
            max(min(MEAN_FACTOR * seen.mean, seen.mean + room.mean), floor.mean),
            max(min(HIGH_FACTOR * seen.high, seen.high + room.high), floor.high),
            max(min(MAX_FACTOR * seen.max, seen.max + room.max), floor.max),
        )

    def check(self, rollouts: Rollouts) -> str:
        """StaleWeightsError beyond the limit; SamplerError when sampler and trainer disagree from the start.

        Returns a warning if only the maximum is beyond the limit, else an empty text.
        """
        seen = measure(rollouts)
        if self.calibration is None:
            if not seen.mean <= SANE_MEAN[self.dtype]:
                raise SamplerError(
                    f"before the first update the sampler's and the trainer's log-probs differ by {seen.mean:.3g} nats "
                    f"on average (at most {seen.max:.3g}; {self.dtype} explains {SANE_MEAN[self.dtype]}): they do not "
                    "compute the same model; compare temperature, attention implementation and model.path"
                )
            self.calibration = seen
        limit = self.limit
        if not (seen.mean <= limit.mean and seen.high <= limit.high):
            raise StaleWeightsError(
                f"the sampler's log-probs differ from the trainer's by {seen.mean:.3g} nats on average and by "
                f"{seen.high:.3g} or more in one of {round(1 / (1 - QUANTILE))} tokens; before the first update it was "
                f"{self.calibration.mean:.3g} and {self.calibration.high:.3g}, {limit.mean:.3g} and {limit.high:.3g} "
                "are allowed: the sampler does not run the current weights (or reads old keys from its prefix cache). "
                "Look at metrics mismatch/* of the last steps; sampler.kind = 'embedded' rules the engine out"
            )
        if seen.max > limit.max:
            return f"a token's log-prob differs by {seen.max:.3g} nats between sampler and trainer"
        return ""
