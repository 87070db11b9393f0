"""The log-prob probe: calibration, limits, and what it says when the sampler is another policy."""

import math

import numpy as np
import pytest
import torch

from fastrl.rollouts import Rollouts
from fastrl.sampling.probe import FLOOR, LogprobProbe, Noise, measure
from fastrl.sampling.protocol import SamplerError, StaleWeightsError


def rollouts(*gaps: float) -> Rollouts:
    logprobs_N = np.array([-2.0 + gap for gap in gaps])
    return Rollouts.of([[1]], [[2] * len(gaps)], sampler_logprobs=[[-2.0] * len(gaps)], policy_logprobs_N=logprobs_N)


def test_noise_is_mean_quantile_and_maximum_of_absolute_differences():
    assert measure(rollouts(0.5, -1.0, 0.0)) == Noise(0.5, 1.0, 1.0)
    spread = measure(rollouts(*[i / 1000 for i in range(1001)], 9.0))
    assert spread.high == pytest.approx(0.991, abs=1e-6) and spread.max == pytest.approx(9.0)
    assert measure(rollouts()) == Noise(0.0, 0.0, 0.0)
    assert math.isnan(measure(rollouts(0.5, math.nan)).mean)


def test_later_steps_are_held_against_the_first_one():
    probe = LogprobProbe(torch.bfloat16)
    assert probe.check(rollouts(0.02, 0.0)) == "" and probe.calibration.mean == pytest.approx(0.01)
    assert probe.limit.mean == pytest.approx(0.05) and probe.limit.high == pytest.approx(0.2) and probe.limit.max == 1.0
    assert probe.check(rollouts(0.09, 0.0)) == ""
    with pytest.raises(StaleWeightsError, match=r"by 0.06 nats on average .* mismatch/"):
        probe.check(rollouts(0.12, 0.0))
    with pytest.raises(StaleWeightsError, match=r"0\.3 or more in one of 100 tokens"):
        probe.check(rollouts(*[0.3] * 3, *[0.0] * 60))
    with pytest.raises(StaleWeightsError, match="nan"):
        probe.check(rollouts(math.nan))
    resumed = LogprobProbe(torch.bfloat16, probe.state())
    assert resumed.limit == probe.limit
    with pytest.raises(StaleWeightsError):
        resumed.check(rollouts(0.12, 0.0))


def calibrated(dtype: torch.dtype, mean: float, high: float, largest: float) -> LogprobProbe:
    return LogprobProbe(dtype, {"mean": mean, "high": high, "max": largest})


def test_a_noisy_cache_hides_no_stale_sampler():
    """Calibrated to 0.05 nats, another 0.04 are allowed with an fp8 cache, where five times 0.05 would be."""
    probes = [calibrated(dtype, 0.05, 0.2, 0.3) for dtype in (torch.float8_e4m3fn, torch.bfloat16)]
    assert probes[0].limit == Noise(pytest.approx(0.09), pytest.approx(0.6), pytest.approx(2.3))
    assert probes[1].limit == Noise(pytest.approx(0.25), pytest.approx(2.0), pytest.approx(6.0))
    generator = np.random.default_rng(0)
    noise, drift = generator.normal(0, 0.05 * math.sqrt(math.pi / 2), (2, 4000))  # mean absolute value 0.05
    for probe in probes:
        assert probe.check(rollouts(*noise)) == ""
        assert probe.check(rollouts(*noise + drift)) == ""  # 0.05 √2
    stale = rollouts(*noise + 2 * drift)  # 0.05 √5 = 0.112
    assert probes[1].check(stale) == ""
    with pytest.raises(StaleWeightsError, match=r"0\.05 and 0\.2, 0\.09 and 0\.6 are allowed"):
        probes[0].check(stale)


def test_little_noise_of_an_fp8_cache_is_held_as_that_of_bfloat16():
    limits = [calibrated(dtype, 0.01, 0.04, 0.1).limit for dtype in (torch.float8_e4m3fn, torch.bfloat16)]
    assert limits[0] == limits[1] == Noise(pytest.approx(0.05), pytest.approx(0.4), pytest.approx(2.0))


def test_one_odd_token_among_many_is_said_and_stops_nothing():
    probe = LogprobProbe(torch.bfloat16)
    probe.check(rollouts(*[0.007] * 1000))
    assert "differs by 3.5 nats" in probe.check(rollouts(3.5, *[0.007] * 1000))
    assert probe.check(rollouts(0.9, *[0.007] * 1000)) == ""


def test_a_state_without_a_quantile_is_read():
    assert LogprobProbe(torch.bfloat16, {"mean": 0.01, "max": 0.05}).limit.high == pytest.approx(0.5)


def test_rounding_below_the_floor_never_stops_a_run():
    probe = LogprobProbe(torch.float32)
    probe.check(rollouts(0.0))
    assert probe.limit == FLOOR[torch.float32]
    probe.check(rollouts(9e-5))


def test_two_models_that_differ_from_the_start_are_no_calibration():
    with pytest.raises(SamplerError, match="do not compute the same model"):
        LogprobProbe(torch.float32).check(rollouts(0.02))
