"""The log-prob probe: does the trainer give tokens that were just sampled the log-probs that the sampler says?

|Δlogp| of the scored rollouts, mean and maximum, is compared with what it was before the first update, when both sides
had just read the same file: what was seen then is numerics (other kernels, bfloat16), several times that is another
policy. It sees what pointers and checksums cannot (a cache of old keys, a kernel that packed a weight away), but one
step at a small learning rate moves log-probs by no more than rounding does: it is the second proof, not the only one.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from fastrl.rollouts import Rollout
from fastrl.sampling.protocol import SamplerError, StaleWeightsError

MEAN_FACTOR, MAX_FACTOR = 5.0, 20.0  # how far beyond the calibration a step may lie; a maximum has a heavy tail


@dataclass(frozen=True)
class Noise:
    """|Δlogp| per token in nats: mean and maximum over the scored tokens of a step."""

    mean: float
    max: float


# Per dtype of the weights: below `FLOOR` nothing is remarkable; above `SANE`, before any update, the two sides do not
# compute the same model.
FLOOR = {torch.float32: Noise(1e-4, 1e-2), torch.bfloat16: Noise(0.02, 1.0)}
SANE_MEAN = {torch.float32: 1e-2, torch.bfloat16: 0.2}


def measure(rollouts: Sequence[Rollout]) -> Noise:
    """Noise of scored rollouts. NaN where a log-prob is NaN; zeros without tokens."""
    pairs = [zip(r.trainer_logprobs, r.sampler_logprobs, strict=True) for r in rollouts]
    gaps = [abs(ours - theirs) for pair in pairs for ours, theirs in pair]
    if any(math.isnan(g) for g in gaps):
        return Noise(math.nan, math.nan)
    return Noise(sum(gaps) / len(gaps), max(gaps)) if gaps else Noise(0.0, 0.0)


class LogprobProbe:
    """`check` calibrates on the first step that it sees and compares every later one. State: see `state`."""

    def __init__(self, dtype: torch.dtype, state: dict[str, float] | None = None):
        self.dtype = dtype
        self.calibration = Noise(**state) if state else None

    def state(self) -> dict[str, float] | None:
        """The calibration for a checkpoint, JSON-able: a resumed run compares with the beginning of the first."""
        return asdict(self.calibration) if self.calibration else None

    @property
    def limit(self) -> Noise:
        """What a calibrated probe allows."""
        floor = FLOOR[self.dtype]
        return Noise(
            max(MEAN_FACTOR * self.calibration.mean, floor.mean), max(MAX_FACTOR * self.calibration.max, floor.max)
        )

    def check(self, rollouts: Sequence[Rollout]) -> Noise:
        """StaleWeightsError beyond the limit; SamplerError when sampler and trainer disagree from the start."""
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
        if not (seen.mean <= limit.mean and seen.max <= limit.max):
            raise StaleWeightsError(
                f"the sampler's log-probs differ from the trainer's by {seen.mean:.3g} nats on average and "
                f"{seen.max:.3g} at most; before the first update it was {self.calibration.mean:.3g} and "
                f"{self.calibration.max:.3g}, {limit.mean:.3g} and {limit.max:.3g} are allowed: the sampler does not "
                "run the current weights (or reads old keys from its prefix cache). Look at metrics mismatch/* of the "
                "last steps; sampler.kind = 'embedded' rules the engine out"
            )
        return seen
