"""A surrogate that only PyTorch knows: every back-end computes what the reference does, in two reads of the logits."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from policy_cases import LOSSES, Case, assert_as_good, assert_results_as_good, make_case, run_linear, run_logits

from fastrl.kernels import SURROGATES, Head, PpoClip, TokenLoss, TokenRows, choose, chunks, linear_policy_loss, native

EXTRAS = {"plain": {}, "everything": {"kl_coef": 0.1, "entropy_coef": 0.05, "importance_cap": 1.3}}


@dataclass(frozen=True)
class RootClip:
    """ℓ = −A·√clip(ρ, 1 − low, 1 + high), which no back-end has fused."""

    name: ClassVar[str] = "root_clip"
    low: float = 0.2
    high: float = 0.5

    def __call__(self, logprobs, old_logprobs, advantages):
        ratio = (logprobs - (logprobs.detach() if old_logprobs is None else old_logprobs)).exp()
        bounded = ratio.clamp(1 - self.low, 1 + self.high)
        return -advantages * bounded.sqrt(), bounded != ratio


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(SURROGATES, RootClip.name, RootClip)


def assert_linear_as_good(case: Case, loss: TokenLoss, backend: str, **options) -> None:
    ours, our_gradients = run_linear(case, loss, backend, **options)
    plain, plain_gradients = run_linear(case, loss, "reference", **options)
    exact, exact_gradients = run_linear(case.to(torch.float64), loss, "reference", **options)
    assert ours.clipped.any() and not ours.clipped.all()
    assert_results_as_good(ours, plain, exact)
    for mine, theirs, true in zip(our_gradients, plain_gradients, exact_gradients, strict=True):
        assert_as_good(mine, theirs, true, "gradient")


def assert_fused_twin_agrees(monkeypatch, kernel, backend: str, loss: TokenLoss) -> None:
    """The same log-probs and flags; loss and gradients up to float32's rounding of the slopes."""
    case = make_case(29, 150, 16, torch.float32, has_bias=True, softcap=7.0)
    fused, fused_gradients = run_linear(case, loss, backend)
    monkeypatch.setattr(kernel, "fused_surrogates", ())
    generic, gradients = run_linear(case, loss, backend)
    for name in ("logprobs", "entropy", "clipped"):
        mine, theirs = (getattr(result, name).nan_to_num(9.0) for result in (generic, fused))
        assert torch.equal(mine, theirs), name
    assert torch.allclose(generic.loss, fused.loss, rtol=1e-6)
    for mine, theirs in zip(gradients, fused_gradients, strict=True):
        assert theirs.abs().max() > 0.1
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_against_fp64(monkeypatch, dtype, extras) -> None:
    monkeypatch.setattr(chunks, "chunk_rows", lambda *sizes, **options: 9)
    case = make_case(61, 307, 40, dtype, has_bias=True, scale=0.7, softcap=8.0)
    assert_linear_as_good(case, TokenLoss(RootClip(), **extras), "native", upstream=-0.5)


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
@pytest.mark.parametrize("num_rows", [23, 1, 0])
def test_logits_against_fp64(num_rows, extras) -> None:
    case, loss = make_case(num_rows, 130, 16, torch.bfloat16), TokenLoss(RootClip(), **extras)
    logits = case.logits()
    ours, our_gradient = run_logits(case, logits, loss, "native")
    plain, plain_gradient = run_logits(case, logits, loss, "reference")
    exact, exact_gradient = run_logits(case.to(torch.float64), logits.double(), loss, "reference")
    assert_results_as_good(ours, plain, exact)
    assert_as_good(our_gradient, plain_gradient, exact_gradient, "gradient")


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_fused_twin_agrees_with_its_surrogate(monkeypatch, loss) -> None:
    assert_fused_twin_agrees(monkeypatch, native, "native", loss)


def test_without_old_logprobs_the_ratio_is_one() -> None:
    case, loss = make_case(12, 40, 8, torch.float32).change(old_logprobs=None), TokenLoss(RootClip())
    result, gradients = run_linear(case, loss, "native")
    _, plain = run_linear(case.change(advantages=case.rows.advantages / 2), TokenLoss(), "native")
    assert torch.allclose(result.loss, -(case.rows.weights * case.rows.advantages).sum())
    for mine, half in zip(gradients, plain, strict=True):
        assert torch.allclose(mine, half, rtol=1e-5, atol=1e-6)


def test_into_a_given_buffer_and_without_gradient() -> None:
    case, loss = make_case(20, 50, 8, torch.float32), TokenLoss(RootClip())
    expected, (hidden_gradient, weight_gradient) = run_linear(case, loss, "native")
    hidden, buffer = case.hidden.clone().requires_grad_(), torch.zeros(50, 8)
    result = linear_policy_loss(hidden, case.head, case.rows, loss, grad_weight=buffer)
    assert torch.equal(torch.autograd.grad(result.loss, hidden)[0], hidden_gradient)
    assert torch.allclose(buffer, weight_gradient, rtol=1e-5, atol=1e-6)
    scored = linear_policy_loss(case.hidden, case.head, case.rows, loss)
    assert torch.allclose(scored.loss, expected.loss, rtol=1e-6)
    assert torch.equal(scored.clipped, expected.clipped)


def test_an_impossible_target_is_named() -> None:
    case = make_case(6, 20, 8, torch.float32).change(targets=torch.arange(6), advantages=torch.ones(6))
    logits = case.logits()
    logits[4, 4] = float("-inf")
    with pytest.raises(ValueError, match="row 4: the logit of target 4 is -inf"):
        run_logits(case, logits, TokenLoss(RootClip()), "native")


def test_it_compiles_whole() -> None:
    case, loss = make_case(14, 24, 8, torch.float32), TokenLoss(RootClip(), kl_coef=0.1)
    hidden, weight = (x.requires_grad_() for x in case.inputs)

    def step(hidden, weight):
        return linear_policy_loss(hidden * 2, Head(weight), case.rows, loss).loss

    torch._dynamo.reset()
    eager, whole = step(hidden, weight), torch.compile(step, fullgraph=True, backend="aot_eager")(hidden, weight)
    assert torch.equal(eager, whole)
    for plain, traced in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (eager, whole)), strict=True):
        assert torch.allclose(plain, traced, rtol=1e-6)


def test_the_choice_says_that_logits_are_read_twice() -> None:
    choice = choose("policy_loss", "cpu", torch.float32, "root_clip")
    assert choice.backend == "native"
    assert choice.reason.endswith("; surrogate root_clip in PyTorch, the logits are read twice")
    assert choose("policy_loss", "cpu", torch.float32, "ppo_clip") == choose("policy_loss", "cpu", torch.float32)
    assert "twice" not in choose("policy_loss", "cpu", torch.float64, "root_clip").reason


def test_a_surrogate_must_be_registered_as_itself(monkeypatch) -> None:
    @dataclass(frozen=True)
    class Four(PpoClip):
        fourth: float = 1.0

    with pytest.raises(ValueError, match=r"surrogate Four is not registered: SURROGATES\['ppo_clip'\] = Four"):
        TokenLoss(Four())
    monkeypatch.delitem(SURROGATES, "root_clip")
    with pytest.raises(ValueError, match=r"surrogate RootClip is not registered"):
        TokenLoss(RootClip())


def test_rows_keep_what_they_share() -> None:
    rows = TokenRows(torch.arange(4), torch.ones(4), 0.5, temperature=torch.tensor(0.7)).take(torch.tensor([3, 1]))
    assert (rows.targets.tolist(), rows.advantages.tolist(), rows.weights) == ([3, 1], [1, 1], 0.5)
    assert rows.temperature.ndim == 0 and rows.old_logprobs is None


def test_settings_import_surrogates_without_torch() -> None:
    code = (
        "import sys, fastrl.kernels.surrogates as home; from fastrl.kernels import SURROGATES, PpoClip;"
        "assert SURROGATES is home.SURROGATES and PpoClip(0.1).low == 0.1;"
        "assert not {'torch', 'triton', 'numpy'} & set(sys.modules);"
        "from fastrl.kernels import TokenLoss; assert TokenLoss(PpoClip()) and 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)
