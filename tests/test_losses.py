"""Surrogates, penalties and importance weights against numbers worked out by hand, in PyTorch and natively.

One row of two logits (ln p, ln(1 − p)) with p = 1/2 for its target: logp = −ln 2, H = ln 2, and the gradient in the
target's logit is slope·(1 − p) = slope/2 while the entropy term is 0 at its maximum.
"""

from math import log

import pytest
import torch

from fastrl.kernels import Cispo, PpoClip, Reinforce, TokenLoss, forced_backend, policy_loss

HALF = log(0.5)
CLIP = PpoClip(0.2, 0.2)

# surrogate, old probability, advantage, loss, slope, clipped
SURROGATES = [
    (Reinforce(), 0.4, 2.0, 1.3862943611, -2.0, False),
    (Reinforce(), 0.4, -1.0, -0.6931471806, 1.0, False),
    (CLIP, 0.5, 1.0, -1.0, -1.0, False),
    (CLIP, None, -3.0, 3.0, 3.0, False),
    (CLIP, 0.4, 1.0, -1.2, 0.0, True),
    (CLIP, 0.4, -1.0, 1.25, 1.25, False),
    (CLIP, 0.8, 1.0, -0.625, -0.625, False),
    (CLIP, 0.8, -1.0, 0.8, 0.0, True),
    (PpoClip(0.2, 0.3), 0.4, 1.0, -1.25, -1.25, False),
    (PpoClip(0.2, 0.2, dual=3.0), 0.1, -1.0, 3.0, 0.0, True),
    (PpoClip(0.2, 0.2, dual=6.0), 0.1, -1.0, 5.0, 5.0, False),
    (Cispo(1.1), 0.4, 1.0, 0.7624618986, -1.1, True),
    (Cispo(1.1), 0.4, -2.0, -1.5249237972, 2.2, True),
    (Cispo(5.0), 0.4, 1.0, 0.8664339757, -1.25, False),
]


def evaluate(backend: str, loss: TokenLoss, advantage: float, weight: float = 1.0, **logprobs: float):
    logits = torch.tensor([[HALF, HALF]], requires_grad=True)
    columns = {f"{name}_logprobs": torch.tensor([value]) for name, value in logprobs.items()}
    with forced_backend(backend):
        result = policy_loss(logits * 1, torch.tensor([0]), torch.tensor([advantage]), weight, loss, **columns)
        return result, torch.autograd.grad(result.loss, logits)[0][0]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("surrogate", "old", "advantage", "value", "slope", "clipped"), SURROGATES)
def test_surrogate(backend, surrogate, old, advantage, value, slope, clipped) -> None:
    logprobs = {} if old is None else {"old": log(old)}
    result, gradient = evaluate(backend, TokenLoss(surrogate), advantage, **logprobs)
    assert result.loss.item() == pytest.approx(value, abs=1e-6)
    assert gradient.tolist() == pytest.approx([slope / 2, -slope / 2], abs=1e-6)
    assert result.clipped.item() is clipped


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_importance_weight_is_capped_and_multiplies_the_surrogate_only(backend) -> None:
    loss = TokenLoss(Reinforce(), kl_coef=0.4, importance_cap=1.5)
    result, gradient = evaluate(backend, loss, 1.0, weight=2.0, sampler=log(0.25), ref=log(0.25))
    # importance min(2, 1.5); k3 with d = −ln 2: 0.5 + ln 2 − 1; ∂k3/∂logp = 1 − e^d = 0.5
    assert result.loss.item() == pytest.approx(2 * (1.5 * 0.6931471806 + 0.4 * 0.1931471806), abs=1e-6)
    assert gradient[0].item() == pytest.approx(2 * (-1.5 + 0.4 * 0.5) / 2, abs=1e-6)
    uncapped, _ = evaluate(backend, TokenLoss(Reinforce(), importance_cap=4.0), 1.0, sampler=log(0.25))
    assert uncapped.loss.item() == pytest.approx(2 * 0.6931471806, abs=1e-6)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_entropy_bonus_of_the_uniform_row(backend) -> None:
    result, gradient = evaluate(backend, TokenLoss(entropy_coef=0.5), 0.0)
    assert result.loss.item() == pytest.approx(-0.5 * log(2), abs=1e-6)
    assert gradient.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_ratio_beyond_the_clamp_has_no_gradient(backend) -> None:
    result, gradient = evaluate(backend, TokenLoss(CLIP), -1.0, old=HALF - 25)
    assert result.loss.item() == pytest.approx(4.851651954e8, rel=1e-5)  # e^20
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_missing_logprobs_are_named(backend) -> None:
    with pytest.raises(ValueError, match="kl_coef needs ref_logprobs"):
        evaluate(backend, TokenLoss(kl_coef=0.1), 1.0)
    with pytest.raises(ValueError, match="importance_cap needs sampler_logprobs"):
        evaluate(backend, TokenLoss(importance_cap=2.0), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PpoClip(low=1.5), "low=1.5"),
        (lambda: PpoClip(high=-0.1), "high=-0.1"),
        (lambda: PpoClip(dual=0.5), "got 0.5"),
        (lambda: Cispo(cap=0.0), "got 0.0"),
    ],
)
def test_impossible_parameters_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
