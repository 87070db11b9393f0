"""token_logprobs: scoring on every native code path, by hand and against fp64."""

from dataclasses import replace
from math import log

import pytest
import torch
from policy_cases import assert_as_good, make_case

from fastrl.kernels import Head, TokenRows, chunks, forced_backend, native, token_logprobs
from fastrl.kernels.rows import HeadTail, RowResults


@pytest.fixture(params=["avx512", "avx2", "portable"])
def path(request):
    try:
        native.force_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native.force_path("auto")


def score(logits: torch.Tensor, targets: list[int], temperature: float = 1.0) -> RowResults:
    out = RowResults.empty(len(targets), logits.device)
    rows = TokenRows(torch.tensor(targets), temperature=temperature).checked(*logits.shape, logits.device)
    assert native.score_rows(logits, rows, HeadTail(), out) == -1
    return out


@pytest.mark.parametrize("vocab", [1, 2, 3, 15, 16, 17, 33, 4096, 4097, 9000])
def test_uniform_rows(path, vocab) -> None:
    out = score(torch.full((2, vocab), 7.0), [0, vocab - 1])
    assert out.logprobs.tolist() == pytest.approx([-log(vocab)] * 2, abs=2e-6)
    assert out.entropy.tolist() == pytest.approx([log(vocab)] * 2, abs=2e-6)


def test_by_hand(path) -> None:
    """p = (0.5, 0.25, 0.25, 0): H = 1.5 ln 2. With temperature 1/2 p ∝ p²: (4, 1, 1)/6."""
    logits = torch.tensor([[log(0.5), log(0.25), log(0.25), float("-inf")]] * 2)
    out = score(logits, [0, 2])
    assert out.logprobs.tolist() == pytest.approx([log(0.5), log(0.25)], abs=1e-6)
    assert out.entropy.tolist() == pytest.approx([1.5 * log(2)] * 2, abs=1e-6)
    cold = score(logits, [0, 2], temperature=0.5)
    assert cold.logprobs.tolist() == pytest.approx([log(4 / 6), log(1 / 6)], abs=1e-6)
    assert cold.entropy[0].item() == pytest.approx(-(4 / 6 * log(4 / 6) + 2 / 6 * log(1 / 6)), abs=1e-6)


def test_a_certain_token_has_no_entropy(path) -> None:
    logits = torch.full((1, 5000), -300.0)
    logits[0, 1234] = 300.0
    out = score(logits, [1234])
    assert out.logprobs.item() == 0
    assert out.entropy.item() == 0


def test_nan_is_not_hidden(path) -> None:
    logits = torch.randn(1, 100)
    logits[0, 57] = float("nan")
    out = RowResults.empty(1, logits.device)
    native.score_rows(logits, TokenRows(torch.tensor([3])).checked(1, 100, logits.device), HeadTail(), out)
    assert out.logprobs.isnan().item()
    assert out.entropy.isnan().item()


@pytest.mark.parametrize("head", [{}, {"has_bias": True, "scale": 1.3, "softcap": 6.0}], ids=["plain", "tail"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("num_rows", "vocab", "width"), [(16, 128, 32), (31, 507, 123), (1, 64, 8), (0, 64, 8)])
def test_against_fp64(path, monkeypatch, num_rows, vocab, width, dtype, head) -> None:
    monkeypatch.setattr(chunks, "CPU_CACHE_BYTES", 16 << 10)
    monkeypatch.setattr(chunks, "CPU_LOGIT_BYTES", 16 << 10)
    case = make_case(num_rows, vocab, width, dtype, **head)
    exact_case = case.to(torch.float64)
    ours = token_logprobs(case.hidden, case.head, case.rows)
    with forced_backend("reference"):
        plain = token_logprobs(case.hidden, case.head, case.rows)
        exact = token_logprobs(exact_case.hidden, exact_case.head, exact_case.rows)
    for name, mine, theirs, true in zip(("logprobs", "entropy"), ours, plain, exact, strict=True):
        assert mine.dtype == torch.float32
        assert_as_good(mine, theirs, true, name)


def test_no_gradient_and_no_graph() -> None:
    case = make_case(4, 20, 8, torch.float32)
    head = Head(case.head.weight.requires_grad_())
    logprobs, entropy = token_logprobs(case.hidden.requires_grad_(), head, TokenRows(case.rows.targets))
    assert not logprobs.requires_grad
    assert not entropy.requires_grad


def test_impossible_targets_are_errors(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "CPU_CACHE_BYTES", 1)
    case = make_case(6, 20, 8, torch.float32, has_bias=True)
    targets = torch.arange(6)
    case.head.bias[4] = float("-inf")
    with pytest.raises(ValueError, match="row 4: the logit of target 4 is -inf"):
        token_logprobs(case.hidden, case.head, TokenRows(targets))
    with pytest.raises(ValueError, match=r"target -3 is outside the vocabulary \[0, 20\)"):
        token_logprobs(case.hidden, case.head, TokenRows(targets - 3))
    with pytest.raises(ValueError, match=r"temperature must be positive, got -1\.0"):
        token_logprobs(case.hidden, replace(case.head, bias=None), TokenRows(targets, temperature=-1.0))
