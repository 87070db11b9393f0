"""The Triton kernels on a CUDA device: accuracy, sizes beyond 32 bits, no synchronisation, nothing compiled anew."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from policy_cases import FULL, LOSSES, PLAIN, assert_as_good, assert_results_as_good, make_case, run_linear, run_logits
from test_surrogates import EXTRAS, RootClip, assert_linear_as_good
from test_surrogates import registered as registered  # a fixture

from fastrl.kernels import (
    Head,
    PolicyLoss,
    TokenLoss,
    TokenRows,
    choose,
    linear_policy_loss,
    policy_loss,
    token_logprobs,
    triton_launch,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def to_host(result: PolicyLoss) -> PolicyLoss:
    return PolicyLoss(result.loss.detach().cpu(), result.logprobs.cpu(), result.entropy.cpu(), result.clipped.cpu())


@pytest.fixture
def sweeps(request, monkeypatch) -> None:
    """Where its parameter is true, rows are swept over; else they are read once where a cluster holds them."""
    monkeypatch.setattr(triton_launch, "HAS_RUN_ON_A_GPU", not request.param)
    triton_launch.choose_launch.cache_clear()
    yield
    triton_launch.choose_launch.cache_clear()


CHOSEN = [(16, 256), (11, 507), (0, 64), (5, 10007), (3, 32000), (40, 128256), (3, 151936), (2, 256000)]
SWEPT = [(11, 507), (3, 151936)]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_rows", "vocab", "sweeps"),
    [(*shape, False) for shape in CHOSEN] + [(*shape, True) for shape in SWEPT],
    indirect=["sweeps"],
)
@pytest.mark.usefixtures("sweeps")
def test_logits_against_fp64(num_rows, vocab, dtype, loss) -> None:
    case = make_case(num_rows, vocab, 16, dtype).on("cuda")
    logits = case.logits()
    assert choose("policy_loss", "cuda", dtype).backend == "triton"
    ours, our_gradient = run_logits(case, logits, loss, "triton")
    plain, plain_gradient = run_logits(case, logits, loss, "reference")
    exact, exact_gradient = run_logits(case.to(torch.float64), logits.double(), loss, "reference")
    assert_results_as_good(to_host(ours), to_host(plain), to_host(exact))
    assert_as_good(our_gradient, plain_gradient, exact_gradient, "gradient")


@pytest.mark.parametrize(
    "head", [{}, {"softcap": 8.0}, {"has_bias": True, "scale": 0.7, "softcap": 8.0}], ids=["plain", "softcap", "tail"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows_per_chunk", [None, 64])
def test_linear_against_fp64(monkeypatch, dtype, head, rows_per_chunk) -> None:
    if rows_per_chunk:
        monkeypatch.setattr("fastrl.kernels.chunks.chunk_rows", lambda *_, **__: rows_per_chunk)
    case = make_case(252, 1003, 120, dtype, **head).on("cuda")
    ours, our_gradients = run_linear(case, FULL, "triton", upstream=-0.5)
    plain, plain_gradients = run_linear(case, FULL, "reference", upstream=-0.5)
    exact, exact_gradients = run_linear(case.to(torch.float64), FULL, "reference", upstream=-0.5)
    assert_results_as_good(to_host(ours), to_host(plain), to_host(exact))
    for mine, theirs, true in zip(our_gradients, plain_gradients, exact_gradients, strict=True):
        assert_as_good(mine, theirs, true, "gradient")


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_a_surrogate_in_pytorch_only(extras) -> None:
    case = make_case(252, 1003, 120, torch.bfloat16).on("cuda")
    assert_linear_as_good(case, TokenLoss(RootClip(), **extras), "triton", upstream=-0.5)


def test_more_logits_than_32_bits_and_more_rows_than_a_16_bit_grid() -> None:
    """70 000 rows × 32 003 = 2.2e9 logits: the last row reads as it does alone."""
    num_rows, vocab = 70_000, 32_003
    logits = torch.empty(num_rows, vocab, dtype=torch.bfloat16, device="cuda").normal_(0, 3)
    targets = torch.randint(0, vocab, (num_rows,), device="cuda")
    rows, last = TokenRows(targets, torch.ones(num_rows, device="cuda")), logits[-3:].clone()
    result = policy_loss(logits.requires_grad_(), rows, PLAIN)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    alone = policy_loss(last.requires_grad_(), rows.take(slice(-3, None)), PLAIN)
    assert torch.equal(result.logprobs[-3:], alone.logprobs)
    assert torch.equal(gradient[-3:], torch.autograd.grad(alone.loss, last)[0])


def test_no_synchronisation_where_row_counts_are_known() -> None:
    """Advantages on the host, all rows on the host, or a regulariser that keeps every row: nothing waits."""
    case = make_case(64, 512, 32, torch.bfloat16)
    host, case = case.rows, case.on("cuda")
    hidden, weight = (x.requires_grad_() for x in case.inputs)
    advantages_there = replace(case.rows, advantages=host.advantages)
    entropy, twice = TokenLoss(entropy_coef=0.1), TokenLoss(RootClip())
    for loss, rows in ((PLAIN, advantages_there), (PLAIN, host), (twice, host), (entropy, case.rows)):
        for attempt in range(2):  # the first compiles
            torch.cuda.set_sync_debug_mode("error" if attempt else "default")
            try:
                result = linear_policy_loss(hidden, Head(weight), rows, loss)
                gradients = torch.autograd.grad(result.loss, (hidden, weight))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("sweeps", [False], indirect=True)
@pytest.mark.usefixtures("sweeps")
def test_nothing_compiles_anew_per_length_or_temperature() -> None:
    from fastrl.kernels.triton_cluster import _policy_cluster_kernel

    def num_compiled() -> int:
        return sum(len(cache[0]) for cache in _policy_cluster_kernel.device_caches.values())

    counts = []
    for num_rows in (16, 17, 1, 33):
        case = make_case(num_rows, 777, 8, torch.bfloat16, seed=num_rows).on("cuda")
        run_logits(case, case.logits(), PLAIN, "triton")
        counts.append(num_compiled())
    assert counts[0] > 0
    assert len(set(counts)) == 1


def test_runs_agree_bitwise_and_scoring_agrees_with_training() -> None:
    case = make_case(40, 5003, 32, torch.bfloat16).on("cuda")
    first, second = run_linear(case, FULL, "triton"), run_linear(case, FULL, "triton")
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    logprobs, entropy = token_logprobs(case.hidden, case.head, case.rows)
    assert torch.allclose(logprobs, first[0].logprobs, rtol=1e-6, atol=3e-6)
    assert torch.allclose(entropy, first[0].entropy, rtol=1e-6, atol=3e-6)


def test_opcheck_and_compile() -> None:
    case = make_case(8, 64, 16, torch.float32).on("cuda")
    scoring = (case.hidden, case.head.weight, None, None, 1.0, case.rows.targets, case.rows.temperature)
    torch.library.opcheck(torch.ops.fastrl.token_logprobs.default, scoring)
    hidden, weight = (x.requires_grad_() for x in case.inputs)

    def step(hidden, weight):
        return linear_policy_loss(hidden * 2, Head(weight), case.rows, FULL).loss

    eager, whole = step(hidden, weight), torch.compile(step, fullgraph=True)(hidden, weight)
    assert torch.allclose(eager, whole)
    for plain, traced in zip(
        torch.autograd.grad(eager, (hidden, weight)), torch.autograd.grad(whole, (hidden, weight)), strict=True
    ):
        assert torch.allclose(plain, traced, rtol=1e-5)


def test_a_target_out_of_range_stops_the_process() -> None:
    code = (
        "import torch, fastrl.kernels as k; torch.set_default_device('cuda'); x = torch.randn(4, 50);"
        "k.policy_loss(x, k.TokenRows(torch.tensor([0, 1, 50, 2]), torch.ones(4)), k.TokenLoss());"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "outside the vocabulary [0, 50)" in done.stdout + done.stderr


def test_masked_rows_and_strided_logits() -> None:
    case = make_case(6, 75, 8, torch.bfloat16).on("cuda")
    logits = case.logits()
    _, expected = run_logits(case, logits, FULL, "triton")
    wide = torch.full((6, 100), 9.0, dtype=torch.bfloat16, device="cuda")
    wide[:, :75] = logits
    leaf = wide[:, :75].detach().requires_grad_()
    assert torch.equal(torch.autograd.grad(policy_loss(leaf, case.rows, FULL).loss, leaf)[0], expected)
    assert (wide[:, 75:] == 9).all()
    masked = case.change(weights=torch.zeros(6, device="cuda"))
    _, gradient = run_logits(masked, logits, FULL, "triton")
    assert (gradient == 0).all()
