"""Gradients without denormals: on some processors a matrix product with them takes a hundred times longer."""

import pytest
import torch
from policy_cases import LOSSES
from test_policy_loss import supported_paths

from fastrl.kernels import Head, TokenLoss, TokenRows, forced_backend, linear_policy_loss, native, policy_loss

TINY = torch.finfo(torch.float32).tiny
PATHS = [*supported_paths(), "reference"]


@pytest.fixture(params=PATHS)
def backend(request):
    if request.param == "reference":
        yield "reference"
        return
    native.force_path(request.param)
    yield "native"
    native.force_path("auto")


def peaked_rows(dtype: torch.dtype, vocab: int = 1003) -> torch.Tensor:
    """Rows whose maximum is 0 to 400 nats above the rest, which slopes down by another 60."""
    gaps = torch.tensor([0.0, 20, 43, 45, 60, 80, 87, 95, 100, 104, 140, 400])
    logits = -gaps[:, None] - torch.linspace(0, 60, vocab)
    logits[:, 7] = 0.0
    return logits.to(dtype)


def gradient_of(logits, targets, weight, loss, backend, **columns) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    rows = TokenRows(targets, torch.linspace(-1, 2, len(logits)), weight, **columns)
    with forced_backend(backend):
        result = policy_loss(leaf * 1, rows, loss)
    return torch.autograd.grad(result.loss, leaf)[0]


@pytest.mark.parametrize("target", [7, 3, 1000])
@pytest.mark.parametrize("weight", [1.0, 1e-6])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradient_of_peaked_logits_is_denormal(backend, dtype, loss, weight, target):
    logits = peaked_rows(dtype)
    targets = torch.full((len(logits),), target)
    columns = {f"{name}_logprobs": torch.full((len(logits),), -1.0) for name in ("old", "sampler", "ref")}
    sizes = gradient_of(logits, targets, weight, loss, backend, **columns).float().abs()
    assert sizes.isfinite().all() and not ((sizes > 0) & (sizes < TINY)).any()


@pytest.mark.parametrize("weight", [1e-20, 1e-30, 1e-36])
@pytest.mark.parametrize("path", supported_paths())
def test_tiny_weights_make_no_denormals_either(path, weight):
    logits = peaked_rows(torch.float32)
    native.force_path(path)
    sizes = gradient_of(logits, torch.full((len(logits),), 3), weight, TokenLoss(), "native").abs()
    native.force_path("auto")
    assert not ((sizes > 0) & (sizes < TINY)).any() and sizes.any()


@pytest.mark.parametrize("tail", [{"bias": True}, {"scale": 0.1}, {"softcap": 90.0}])
def test_nor_do_heads_with_a_tail(backend, tail):
    logits = peaked_rows(torch.float32)
    bias = torch.zeros(logits.shape[1]) if tail.pop("bias", False) else None
    hidden = torch.eye(len(logits), requires_grad=True)
    head = Head(logits.t().contiguous(), bias, **tail)
    rows = TokenRows(torch.full((len(logits),), 7), torch.ones(len(logits)), 1e-3)
    with forced_backend(backend):
        loss = linear_policy_loss(hidden, head, rows, TokenLoss(entropy_coef=0.1)).loss
    sizes = torch.autograd.grad(loss, hidden)[0].abs()
    assert not ((sizes > 0) & (sizes < TINY)).any()


def test_what_is_left_out_could_not_be_seen(backend):
    """Against float64 without any cut: no element is off by more than 2⁻⁶⁴ of its row's slope and float32's error."""
    logits = peaked_rows(torch.float32)
    targets = torch.full((len(logits),), 3)
    found = gradient_of(logits, targets, 1.0, TokenLoss(entropy_coef=0.1), backend)
    wide = logits.double().requires_grad_()
    logprobs = torch.log_softmax(wide, -1)
    advantages = torch.linspace(-1, 2, len(logits)).double()
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    (exact,) = torch.autograd.grad((-advantages * logprobs[:, 3] - 0.1 * entropy).sum(), wide)
    bound = 1e-6 * exact.abs() + 3 * 2.0**-64 + 2e-7 * exact.abs().amax(-1, keepdim=True)
    assert ((found - exact).abs() <= bound).all()
    assert ((found == 0) == (exact.abs() < 2.0**-58)).float().mean() > 0.9  # what is far above the cut is there
