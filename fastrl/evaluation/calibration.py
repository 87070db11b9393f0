"""Whether stated confidence is worth anything: comparing it with what was correct.

    Brier = mean (c − y)²                                    Brier 1950; 0 is best, 0.25 is what a constant ½ gets
    ECE   = Σ_bins (n_b / n) · |mean c − mean y|             Naeini et al. 2015; equal-width bins, 0 is best
    AUROC = P(c of a correct sample > c of a wrong one), a tie counting ½      Mann and Whitney 1947; ½ is chance

c in [0, 1] is the stated confidence, y is 1 for a correct sample. Shapes: n samples.
"""

from collections.abc import Sequence

import numpy as np


def brier(confidence_n: Sequence[float], is_correct_n: Sequence[bool]) -> float:
    """Mean squared difference. ValueError, as everywhere here: no samples, unequal lengths, values outside [0, 1]."""
    confidence_n, correct_n = _checked(confidence_n, is_correct_n)
    return float(np.mean((confidence_n - correct_n) ** 2))


def expected_calibration_error(
    confidence_n: Sequence[float], is_correct_n: Sequence[bool], *, num_bins: int = 10
) -> float:
    """Gap of confidence and accuracy, bins weighed by their samples; bin b is [b, b+1) / num_bins, 1 in the last."""
    confidence_n, correct_n = _checked(confidence_n, is_correct_n)
    bins_n = np.minimum((confidence_n * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins_n, confidence_n - correct_n, minlength=num_bins)  # n_b · (mean c − mean y)
    return float(np.abs(gaps).sum() / len(bins_n))


def auroc(confidence_n: Sequence[float], is_correct_n: Sequence[bool]) -> float | None:
    """How well confidence ranks correct above wrong; None where all are correct or all are wrong."""
    confidence_n, correct_n = _checked(confidence_n, is_correct_n)
    num_correct = int(correct_n.sum())
    num_wrong = len(correct_n) - num_correct
    if not num_correct or not num_wrong:
        return None
    _, group_n, counts = np.unique(confidence_n, return_inverse=True, return_counts=True)
    ranks_n = (np.cumsum(counts) - (counts - 1) / 2)[group_n]  # from 1, ties share the middle
    return float((ranks_n[correct_n > 0].sum() - num_correct * (num_correct + 1) / 2) / (num_correct * num_wrong))


def calibration(stated: Sequence[float | None], is_correct: Sequence[bool]) -> dict[str, float | None] | None:
    """All measures for samples of any problems. stated: of each, or None. None if no sample states any."""
    pairs = [(c, y) for c, y in zip(stated, is_correct, strict=True) if c is not None]
    if not pairs:
        return None
    confidence, correct = zip(*pairs, strict=True)
    return {
        "stated_share": len(pairs) / len(stated),
        "mean_confidence": float(np.mean(confidence)),
        "accuracy": float(np.mean(correct)),
        "brier": brier(confidence, correct),
        "ece": expected_calibration_error(confidence, correct),
        "auroc": auroc(confidence, correct),
    }


def _checked(confidence_n: Sequence[float], is_correct_n: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    confidence_n, correct_n = (np.asarray(v, dtype=np.float64) for v in (confidence_n, is_correct_n))
    if confidence_n.shape != correct_n.shape or not confidence_n.size:
        raise ValueError(
            f"calibration needs one confidence per verdict, not {confidence_n.size} for {correct_n.size} verdicts"
        )
    if not ((confidence_n >= 0) & (confidence_n <= 1)).all():
        raise ValueError(
            f"confidence must lie in [0, 1], got {confidence_n[~((confidence_n >= 0) & (confidence_n <= 1))][0]}"
        )
    return confidence_n, correct_n
