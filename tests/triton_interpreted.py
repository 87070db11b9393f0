"""The Triton kernels in Triton's interpreter, on CPU tensors. test_triton_interpreter.py runs this file in a process of
its own (TRITON_INTERPRET=1 must not reach a process that compiles); its name keeps it out of the usual collection."""

from dataclasses import replace
from functools import partial
from math import exp, log

import pytest
import torch
from policy_cases import CLIP, LOSSES, PLAIN, assert_as_good, assert_results_as_good, make_case, run_linear, run_logits
from test_denormals import TINY, gradient_of, peaked_rows
from test_losses import HALF, SURROGATES, evaluate
from test_surrogates import EXTRAS, RootClip, assert_fused_twin_agrees, assert_linear_as_good
from test_surrogates import registered as registered  # a fixture

from fastrl.kernels import Head, TokenLoss, forced_backend, linear_policy_loss, token_logprobs, triton_rows
from fastrl.kernels.rows import HeadTail, RowResults
from fastrl.kernels.triton_launch import Launch, choose_launch
from fastrl.kernels.triton_losses import parameters_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


TILE = 64


def small_launch(vocab, itemsize, device, *, with_gradient, has_tail, has_bias, is_cluster) -> Launch:
    """Blocks or tiles of 64, so that small vocabularies take several, the last one partly empty."""
    size = {"TILE_V": TILE, "NUM_TILES": -(-vocab // TILE)} if is_cluster else {"BLOCK_V": TILE}
    return Launch(is_cluster, size, "small")


@pytest.fixture(autouse=True, params=[False, True], ids=["sweeps", "cluster"])
def small_blocks(monkeypatch, request) -> None:
    monkeypatch.setattr(triton_rows, "choose_launch", partial(small_launch, is_cluster=request.param))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab"), [(8, 128), (7, 507), (1, 23), (0, 64)])
def test_logits_against_fp64(num_rows, vocab, dtype, loss) -> None:
    case = make_case(num_rows, vocab, 16, dtype)
    logits = case.logits()
    ours, our_gradient = run_logits(case, logits, loss, "triton")
    plain, plain_gradient = run_logits(case, logits, loss, "reference")
    exact, exact_gradient = run_logits(case.to(torch.float64), logits.double(), loss, "reference")
    assert_results_as_good(ours, plain, exact)
    if dtype == torch.bfloat16:  # the interpreter truncates to bf16, a GPU rounds: within one step of the fp32 gradient
        _, wide = run_logits(case, logits.float(), loss, "triton")
        assert_as_good(wide, plain_gradient.float(), exact_gradient, "gradient")
        assert ((our_gradient.float() - wide).abs() <= 2**-7 * wide.abs()).all()
    else:
        assert_as_good(our_gradient, plain_gradient, exact_gradient, "gradient")


@pytest.mark.parametrize(("vocab", "num_ctas"), [(1003, 1), (40001, 4)])
def test_the_shapes_that_are_launched(monkeypatch, vocab, num_ctas) -> None:
    """With the options that a GPU gets; the interpreter runs a cluster as one program."""
    monkeypatch.setattr(triton_rows, "choose_launch", choose_launch)
    case = make_case(2, vocab, 8, torch.float32)
    options = choose_launch(vocab, 4, case.hidden.device, with_gradient=True).options
    assert options["num_ctas"] == num_ctas
    ours, our_gradient = run_logits(case, case.logits(), CLIP, "triton")
    native, native_gradient = run_logits(case, case.logits(), CLIP, "native")
    assert torch.allclose(ours.logprobs, native.logprobs, atol=3e-6)
    assert torch.allclose(our_gradient, native_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "head", [{"has_bias": True}, {"softcap": 5.0}, {"has_bias": True, "scale": 0.7, "softcap": 8.0}]
)
@pytest.mark.parametrize("loss", [PLAIN, LOSSES["clip_kl_entropy_importance"]], ids=["reinforce", "full"])
def test_heads_against_fp64(head, loss) -> None:
    case = make_case(13, 150, 24, torch.float32, **head)
    ours, our_gradients = run_linear(case, loss, "triton", upstream=-2.0)
    plain, plain_gradients = run_linear(case, loss, "reference", upstream=-2.0)
    exact, exact_gradients = run_linear(case.to(torch.float64), loss, "reference", upstream=-2.0)
    assert_results_as_good(ours, plain, exact)
    for mine, theirs, true in zip(our_gradients, plain_gradients, exact_gradients, strict=True):
        assert_as_good(mine, theirs, true, "gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scoring_against_fp64(dtype) -> None:
    case = make_case(9, 300, 16, dtype, softcap=6.0)
    exact_case = case.to(torch.float64)
    with forced_backend("triton"):
        ours = token_logprobs(case.hidden, case.head, case.rows)
    with forced_backend("reference"):
        plain = token_logprobs(case.hidden, case.head, case.rows)
        exact = token_logprobs(exact_case.hidden, exact_case.head, exact_case.rows)
    for name, mine, theirs, true in zip(("logprobs", "entropy"), ours, plain, exact, strict=True):
        assert_as_good(mine, theirs, true, name)


@pytest.mark.parametrize(("surrogate", "old", "advantage", "value", "slope", "clipped"), SURROGATES)
def test_surrogates_by_hand(surrogate, old, advantage, value, slope, clipped) -> None:
    logprobs = {} if old is None else {"old": log(old)}
    result, gradient = evaluate("triton", TokenLoss(surrogate), advantage, **logprobs)
    assert result.loss.item() == pytest.approx(value, abs=1e-6)
    assert gradient.tolist() == pytest.approx([slope / 2, -slope / 2], abs=1e-6)
    assert result.clipped.item() is clipped
    assert result.logprobs.item() == pytest.approx(HALF, abs=1e-6)


def test_native_and_triton_agree() -> None:
    case = make_case(21, 333, 24, torch.float32, has_bias=True, softcap=7.0)
    loss = LOSSES["cispo_entropy"]
    native, triton = run_linear(case, loss, "native"), run_linear(case, loss, "triton")
    assert torch.allclose(native[0].logprobs, triton[0].logprobs, atol=3e-6)
    assert torch.allclose(native[0].entropy, triton[0].entropy, atol=3e-6)
    for mine, theirs in zip(native[1], triton[1], strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_minus_infinity_logits_carry_nothing() -> None:
    case = make_case(5, 200, 8, torch.float32)
    case = case.change(targets=case.rows.targets % 40 + 100)
    logits = case.logits()
    logits[:, :70] = float("-inf")  # the whole first block, and a part of the second
    for loss in LOSSES.values():
        ours, gradient = run_logits(case, logits, loss, "triton")
        short, short_gradient = run_logits(
            case.change(targets=case.rows.targets - 70), logits[:, 70:].contiguous(), loss, "native"
        )
        assert torch.allclose(ours.logprobs, short.logprobs, atol=3e-6)
        assert torch.allclose(ours.entropy, short.entropy, atol=3e-6)
        assert (gradient[:, :70] == 0).all()
        assert torch.allclose(gradient[:, 70:], short_gradient, rtol=1e-4, atol=1e-6)


def test_impossible_targets() -> None:
    """−inf: an error as on CPU. Out of range: the kernel itself, without the host's check, reads NaN."""
    case = make_case(4, 90, 8, torch.float32)
    logits = case.logits()
    logits[1, case.rows.targets[1]] = float("-inf")
    with pytest.raises(ValueError, match=f"row 1: the logit of target {int(case.rows.targets[1])} is -inf"):
        run_logits(case, logits, PLAIN, "triton")
    rows = case.rows.checked(4, 90, logits.device)
    out = RowResults.empty(4, logits.device)
    triton_rows.score_rows(case.logits(), replace(rows, targets=torch.tensor([0, 90, -1, 5])), HeadTail(), out)
    assert out.logprobs.isnan().tolist() == [False, True, True, False]


def test_masked_rows_get_zeros() -> None:
    case = make_case(4, 90, 8, torch.bfloat16)
    case = case.change(weights=torch.zeros(4))
    _, gradient = run_logits(case, case.logits(), LOSSES["cispo_entropy"], "triton")
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradient_rows_sum_to_zero_and_orders_agree() -> None:
    case = make_case(10, 301, 8, torch.float32)
    logits, loss = case.logits(), LOSSES["clip_kl_entropy_importance"]
    _, gradient = run_logits(case, logits, loss, "triton")
    assert (gradient.double().sum(-1).abs() <= 1e-5 * gradient.abs().amax(-1)).all()
    moved = replace(case, rows=case.rows.map(lambda x: x.flip(0)))
    _, flipped = run_logits(moved, logits.flip(0), loss, "triton")
    assert torch.equal(gradient.flip(0), flipped)


def test_strided_rows_and_offsets_beyond_32_bits() -> None:
    vocab, stride = 100, 2**31 + 8
    case = make_case(2, vocab, 8, torch.bfloat16)
    logits = case.logits()
    far = torch.empty(stride + vocab, dtype=torch.bfloat16).as_strided((2, vocab), (stride, 1))
    far.copy_(logits)
    rows = case.rows.checked(2, vocab, far.device)
    out, near = RowResults.empty(2, far.device), RowResults.empty(2, far.device)
    triton_rows.policy_rows(far, rows, HeadTail(), PLAIN, out, True)
    triton_rows.policy_rows(logits, rows, HeadTail(), PLAIN, near, True)
    assert torch.equal(far, logits)
    assert torch.equal(out.logprobs, near.logprobs)


@pytest.mark.parametrize("upstream", [1.0, 0.25, 0.0, -0.5])
def test_scaling_in_place(monkeypatch, upstream) -> None:
    """50 blocks and a part of one in three programs."""
    monkeypatch.setattr(triton_rows, "SCALE_BLOCK", 128)
    monkeypatch.setattr(triton_rows, "MAX_SCALE_PROGRAMS", 3)
    values = torch.randn(50 * 128 + 7).bfloat16()
    expected = (values.float() * upstream).bfloat16()
    triton_rows.scale_(values, torch.tensor(upstream))
    assert torch.equal(values, expected)


@pytest.mark.parametrize("upstream", [1.0, 2.0, 0.0, -0.5])
def test_two_backwards_of_the_operator(upstream) -> None:
    case = make_case(12, 40, 8, torch.float32)
    hidden, weight = (x.requires_grad_() for x in case.inputs)
    with forced_backend("triton"):
        loss = linear_policy_loss(hidden, Head(weight), case.rows, PLAIN).loss
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for is_kept in (True, False):
        scaled = torch.autograd.grad(upstream * loss, (hidden, weight), retain_graph=is_kept)
        assert all(torch.equal(mine, upstream * plain) for mine, plain in zip(scaled, once, strict=True))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("target", [7, 3])
def test_no_gradient_of_peaked_logits_is_denormal(loss, target) -> None:
    logits = peaked_rows(torch.float32, 200)
    columns = {f"{name}_logprobs": torch.full((len(logits),), -1.0) for name in ("old", "sampler", "ref")}
    targets = torch.full((len(logits),), target)
    sizes = gradient_of(logits, targets, 1e-6, loss, "triton", **columns).abs()
    assert sizes.isfinite().all() and not ((sizes > 0) & (sizes < TINY)).any()


def test_k3_is_clamped_as_the_ratios_are() -> None:
    for sign in (1, -1):
        result, gradient = evaluate("triton", TokenLoss(kl_coef=1.0), 0.0, ref=HALF + sign * 500.0)
        assert result.loss.item() == pytest.approx(exp(sign * 20) - sign * 20 - 1, rel=1e-5)
        assert gradient.tolist() == [0.0, 0.0]


def test_kernels_take_their_own_surrogates_and_numbers_of_parameters_only() -> None:
    with pytest.raises(ValueError, match="ppo_clip takes 3 parameters, got 4"):
        parameters_of("ppo_clip", (0.2, 0.2, 0.0, 1.0))
    with pytest.raises(ValueError, match="one of reinforce, ppo_clip, cispo, got 'unknown'"):
        parameters_of("unknown", ())


@pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS.keys())
def test_a_surrogate_in_pytorch_only(extras) -> None:
    case = make_case(31, 150, 24, torch.float32, has_bias=True, scale=0.7, softcap=8.0)
    assert_linear_as_good(case, TokenLoss(RootClip(), **extras), "triton", upstream=-0.5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_fused_twin_agrees_with_its_surrogate(monkeypatch, loss) -> None:
    assert_fused_twin_agrees(monkeypatch, triton_rows, "triton", loss)
