"""Calibration against values worked out by hand, and reading confidence from texts that mean harm."""

import time

import pytest

from fastrl.evaluation.calibration import auroc, brier, calibration, expected_calibration_error
from fastrl.tasks.confidence import stated_confidence

CONFIDENCE = [0.9, 0.8, 0.8, 0.3, 0.1]
CORRECT = [True, True, False, True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 3.\nConfidence: 0.8", 0.8),
        ("confidence: 80%", 0.8),
        ("confidence is 75 %.", 0.75),
        ("<confidence>0.35</confidence>", 0.35),
        ("CONFIDENCE = .5", 0.5),
        ("confidence 1", 1.0),
        ("confidence: 1.0", 1.0),
        ("confidence: 0", 0.0),
        ("confidence: 0.2 … on reflection, confidence: 0.9", 0.9),
        ("confidence: 100%", 1.0),
        ("confidence: 101%", None),
        ("confidence: 7", None),
        ("confidence: 0.9, no, confidence: 12", None),
        ("confidence: -0.5", None),
        ("confidence: nan", None),
        ("confidence: 1e-3", None),
        ("my confidence in 2 of these", None),
        ("", None),
    ],
)
def test_stated_confidence(text, expected):
    assert stated_confidence(text) == expected


def test_a_megabyte_of_confidence_costs_nothing():
    start = time.perf_counter()
    for text in ("confidence" * 100_000, "confidence: " + "9" * 1_000_000, "confidence:" + " " * 1_000_000 + "0.5"):
        assert stated_confidence(text) is None
    assert time.perf_counter() - start < 1


def test_brier_by_hand():
    # (.1² + .2² + .8² + .7² + .1²) / 5
    assert brier(CONFIDENCE, CORRECT) == pytest.approx((0.01 + 0.04 + 0.64 + 0.49 + 0.01) / 5)


def test_expected_calibration_error_by_hand():
    # bins of a tenth: {.9}: |.9−1|, {.8,.8}: 2·|.8−.5|, {.3}: |.3−1|, {.1}: |.1−0|, each over 5 samples
    assert expected_calibration_error(CONFIDENCE, CORRECT) == pytest.approx((0.1 + 0.6 + 0.7 + 0.1) / 5)
    # two bins: {.3,.1}: |.4−1|, {.9,.8,.8}: |2.5−2|
    assert expected_calibration_error(CONFIDENCE, CORRECT, num_bins=2) == pytest.approx((0.6 + 0.5) / 5)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0


def test_auroc_by_hand():
    # correct .9 .8 .3 against wrong .8 .1: .9 beats both, .8 ties one and beats one, .3 beats one: 2 + 1.5 + 1 of 6
    assert auroc(CONFIDENCE, CORRECT) == pytest.approx(4.5 / 6)
    assert auroc([0.2, 0.9], [False, True]) == 1 and auroc([0.9, 0.2], [False, True]) == 0
    assert auroc([0.5] * 4, [True, False, True, False]) == 0.5
    assert auroc([0.5, 0.6], [True, True]) is None


def test_calibration_uses_the_samples_that_state_something():
    texts = [f"x confidence: {c}" for c in CONFIDENCE]
    found = calibration([stated_confidence(t) for t in [*texts, "silent"]], [*CORRECT, True])
    assert found["stated_share"] == pytest.approx(5 / 6) and found["accuracy"] == pytest.approx(0.6)
    assert found["brier"] == brier(CONFIDENCE, CORRECT) and found["auroc"] == auroc(CONFIDENCE, CORRECT)
    assert calibration([stated_confidence("silent")], [True]) is None


@pytest.mark.parametrize(
    ("confidence", "correct"), [([], []), ([0.5], [True, False]), ([1.2], [True]), ([float("nan")], [True])]
)
def test_what_cannot_be_calibrated_is_refused(confidence, correct):
    with pytest.raises(ValueError, match=r"calibration needs|confidence must lie"):
        brier(confidence, correct)
