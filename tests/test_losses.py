"""Surrogates, penalties and importance weights against numbers worked out by hand, in PyTorch and natively.

One row of two logits (ln p, ln(1 − p)) with p = 1/2 for its target: logp = −ln 2, H = ln 2, and the gradient in the
target's logit is slope·(1 − p) = slope/2 while the entropy term is 0 at its maximum.
"""

from dataclasses import replace
from math import exp, log

import pytest
import torch

from fastrl.kernels import (
    Cispo,
    Head,
    PpoClip,
    Reinforce,
    TokenLoss,
    TokenRows,
    forced_backend,
    linear_policy_loss,
    policy_loss,
)

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
    rows = TokenRows(torch.tensor([0]), torch.tensor([advantage]), weight, **columns)
    with forced_backend(backend):
        result = policy_loss(logits * 1, rows, loss)
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
@pytest.mark.parametrize("sign", [1, -1])
def test_k3_is_clamped_as_the_ratios_are(backend, sign) -> None:
    """Far away the penalty is finite, e^±20 ∓ 20 − 1, and without gradient."""
    for distance in (25.0, 500.0):
        result, gradient = evaluate(backend, TokenLoss(kl_coef=1.0), 0.0, ref=HALF + sign * distance)
        assert result.loss.item() == pytest.approx(exp(sign * 20) - sign * 20 - 1, rel=1e-5)
        assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_an_importance_weight_of_any_size_is_its_cap(backend) -> None:
    result, _ = evaluate(backend, TokenLoss(importance_cap=2.0), 1.0, sampler=HALF - 1000.0)
    assert result.loss.item() == pytest.approx(2 * log(2), abs=1e-6)


@pytest.mark.parametrize("surrogate", [Reinforce(), CLIP, PpoClip(0.2, 0.2, dual=3.0), Cispo(1.1)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_surrogates_are_linear_in_the_size_of_the_advantage(backend, surrogate) -> None:
    for advantage in (1.0, -1.0):
        for old in (0.1, 0.4, 0.8):
            one, gradient = evaluate(backend, TokenLoss(surrogate), advantage, old=log(old))
            many, larger = evaluate(backend, TokenLoss(surrogate), 16 * advantage, old=log(old))
            assert many.loss.item() == pytest.approx(16 * one.loss.item(), rel=1e-6)
            assert larger.tolist() == pytest.approx((16 * gradient).tolist(), rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_float16_gradients_that_would_vanish_are_refused(backend) -> None:
    hidden, weight = torch.randn(6, 8).half().requires_grad_(), torch.randn(5000, 8).half().requires_grad_()
    rows = TokenRows(torch.arange(6), torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0, 1.0]), 1e-6)
    with forced_backend(backend):
        for given in (rows, replace(rows, weights=torch.full((6,), 1e-6))):
            with pytest.raises(ValueError, match=r"float16 gradients .* \|weight·advantage\| is 1e-06, at V = 5000"):
                linear_policy_loss(hidden, Head(weight), given, TokenLoss())
        with pytest.raises(ValueError, match="float16 gradients"):
            policy_loss((hidden @ weight.t()) * 1, rows, TokenLoss())
        linear_policy_loss(hidden, Head(weight), replace(rows, weights=1e-6 * 2**20), TokenLoss())
        linear_policy_loss(hidden.detach(), Head(weight.detach()), rows, TokenLoss())


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
