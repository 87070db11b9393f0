"""The log-prob probe: calibration, limits, and what it says when the sampler is another policy."""

import math

import pytest
import torch

from fastrl.rollouts import Rollout
from fastrl.sampling.probe import FLOOR, LogprobProbe, Noise, measure
from fastrl.sampling.protocol import SamplerError, StaleWeightsError


def rollouts(*gaps: float) -> list[Rollout]:
    rollout = Rollout([1], [2] * len(gaps), [-2.0] * len(gaps), "stop", 0)
    rollout.trainer_logprobs = [-2.0 + gap for gap in gaps]
    return [rollout]


def test_noise_is_mean_and_maximum_of_absolute_differences():
    assert measure(rollouts(0.5, -1.0, 0.0)) == Noise(0.5, 1.0)
    assert measure([]) == Noise(0.0, 0.0)
    assert math.isnan(measure(rollouts(0.5, math.nan)).mean)


def test_later_steps_are_held_against_the_first_one():
    probe = LogprobProbe(torch.bfloat16)
    assert probe.check(rollouts(0.02, 0.0)).mean == pytest.approx(0.01)
    assert probe.limit.mean == pytest.approx(0.05) and probe.limit.max == 1.0
    probe.check(rollouts(0.09, 0.0))
    with pytest.raises(StaleWeightsError, match=r"by 0.06 nats on average .* mismatch/"):
        probe.check(rollouts(0.12, 0.0))
    with pytest.raises(StaleWeightsError, match=r"and 1\.5 at most"):
        probe.check(rollouts(1.5, *[0.0] * 60))
    with pytest.raises(StaleWeightsError, match="nan"):
        probe.check(rollouts(math.nan))
    resumed = LogprobProbe(torch.bfloat16, probe.state())
    assert resumed.limit == probe.limit
    with pytest.raises(StaleWeightsError):
        resumed.check(rollouts(0.12, 0.0))


def test_rounding_below_the_floor_never_stops_a_run():
    probe = LogprobProbe(torch.float32)
    probe.check(rollouts(0.0))
    assert probe.limit == FLOOR[torch.float32]
    probe.check(rollouts(9e-5))


def test_two_models_that_differ_from_the_start_are_no_calibration():
    with pytest.raises(SamplerError, match="do not compute the same model"):
        LogprobProbe(torch.float32).check(rollouts(0.02))
