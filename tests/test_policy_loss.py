"""policy_loss on logits, native kernel: every code path against the fp64 reference, and other people's bugs."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from policy_cases import LOSSES, PLAIN, Case, assert_as_good, assert_results_as_good, make_case, run_logits

from fastrl.kernels import PpoClip, TokenLoss, TokenRows, native, policy_loss
from fastrl.kernels.rows import HeadTail, RowResults

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(16, 256), (11, 507), (1, 123), (0, 64), (3, 10007)]


def supported_paths() -> list[str]:
    paths = []
    for name in ("avx512", "avx2", "portable"):
        try:
            native.force_path(name)
        except ValueError:
            continue
        paths.append(name)
    native.force_path("auto")
    return paths


@pytest.fixture(params=supported_paths())
def path(request):
    native.force_path(request.param)
    yield request.param
    native.force_path("auto")


def logits_case(num_rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> tuple[Case, torch.Tensor]:
    case = make_case(num_rows, vocab, 16, dtype, seed=seed)
    return case, case.logits()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab"), SHAPES)
def test_against_fp64(path, num_rows, vocab, dtype, loss) -> None:
    case, logits = logits_case(num_rows, vocab, dtype)
    ours, our_gradient = run_logits(case, logits, loss, "native")
    plain, plain_gradient = run_logits(case, logits, loss, "reference")
    exact, exact_gradient = run_logits(case.to(torch.float64), logits.double(), loss, "reference")
    assert_results_as_good(ours, plain, exact)
    assert our_gradient.dtype == dtype
    assert_as_good(our_gradient, plain_gradient, exact_gradient, "gradient")


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_signs_of_one_step(path, advantage) -> None:
    """A step against the gradient raises a right token's log-prob and lowers a wrong one's; a bonus raises H."""
    case, logits = logits_case(8, 50, torch.float32)
    case = case.change(advantages=torch.full((8,), advantage), weights=1.0)
    before, gradient = run_logits(case, logits, PLAIN, "native")
    after, _ = run_logits(case, logits - 1e-2 * gradient, PLAIN, "native")
    assert (torch.sign(after.logprobs - before.logprobs) == advantage).all()
    case = case.change(advantages=torch.zeros(8))
    bonus = TokenLoss(entropy_coef=1.0)
    before, gradient = run_logits(case, logits, bonus, "native")
    after, _ = run_logits(case, logits - 1e-2 * gradient, bonus, "native")
    assert (after.entropy > before.entropy).all()


def test_gradient_is_the_formula_of_the_design(path) -> None:
    """w·[c(δ − p) + h·p(log p + H)]/τ with c = −A and h = 0.2, in fp64 from the definition."""
    case, logits = logits_case(9, 77, torch.float32)
    _, gradient = run_logits(case, logits, TokenLoss(entropy_coef=0.2), "native")
    temperature = case.rows.temperature.double().unsqueeze(1)
    logprobs = torch.log_softmax(logits.double() / temperature, -1)
    p, one_hot = logprobs.exp(), torch.nn.functional.one_hot(case.rows.targets, 77)
    entropy = -(p * logprobs).sum(-1, keepdim=True)
    slope = -case.rows.advantages.double().unsqueeze(1)
    expected = slope * (one_hot - p) + 0.2 * p * (logprobs + entropy)
    expected = case.rows.weights.double().unsqueeze(1) * expected / temperature
    assert (gradient - expected).abs().max() < 2e-6


def test_gradient_rows_sum_to_zero(path) -> None:
    case, logits = logits_case(12, 4001, torch.float32)
    _, gradient = run_logits(case, logits, LOSSES["clip_kl_entropy_importance"], "native")
    scale = gradient.abs().amax(-1)
    assert (gradient.double().sum(-1).abs() <= 1e-5 * scale).all()
    assert (scale[case.rows.weights != 0] > 0).all()


def test_runs_and_row_orders_agree_bitwise(path) -> None:
    case, logits = logits_case(33, 1003, torch.bfloat16)
    first, gradient = run_logits(case, logits, LOSSES["cispo_entropy"], "native")
    again, gradient_again = run_logits(case, logits, LOSSES["cispo_entropy"], "native")
    assert torch.equal(gradient, gradient_again)
    assert torch.equal(first.loss, again.loss)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(3))
    moved = replace(case, rows=case.rows.take(order))
    shuffled, gradient_shuffled = run_logits(moved, logits[order], LOSSES["cispo_entropy"], "native")
    assert torch.equal(gradient[order], gradient_shuffled)
    assert torch.equal(first.logprobs[order], shuffled.logprobs)
    assert torch.equal(first.entropy[order], shuffled.entropy)


def test_thread_count_changes_nothing(path) -> None:
    case, logits = logits_case(64, 2003, torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _, single = run_logits(case, logits, PLAIN, "native")
    finally:
        torch.set_num_threads(threads)
    _, several = run_logits(case, logits, PLAIN, "native")
    assert torch.equal(single, several)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_infinity_logits_carry_nothing(path, dtype) -> None:
    """Masked tokens: p·log p = 0 there. Without them the row is the shorter row."""
    case, logits = logits_case(6, 90, dtype)
    case = case.change(targets=case.rows.targets % 40)
    masked = logits.clone()
    masked[:, 40:] = float("-inf")
    ours, gradient = run_logits(case, masked, LOSSES["cispo_entropy"], "native")
    short, short_gradient = run_logits(case, logits[:, :40], LOSSES["cispo_entropy"], "native")
    assert torch.allclose(ours.logprobs, short.logprobs, rtol=0, atol=2e-6)
    assert torch.allclose(ours.entropy, short.entropy, rtol=0, atol=2e-6)
    assert (gradient[:, 40:] == 0).all()
    assert_as_good(gradient[:, :40], short_gradient, short_gradient.double(), "gradient of the finite part")


def test_leading_block_of_minus_infinity(path) -> None:
    logits = torch.full((1, 9000), float("-inf"))
    logits[0, 8999] = 3.0
    logits[0, 8998] = 3.0
    result = policy_loss(logits, TokenRows(torch.tensor([8999]), torch.ones(1)), PLAIN)
    assert result.logprobs.item() == pytest.approx(-0.6931471806, abs=1e-6)
    assert result.entropy.item() == pytest.approx(0.6931471806, abs=1e-6)


def test_a_rising_maximum_rescales_the_sums(path) -> None:
    """Logits that grow from block to block, over 3 blocks of the kernel."""
    logits = torch.linspace(-40, 40, 12001).unsqueeze(0)
    exact = torch.log_softmax(logits.double(), -1)
    result = policy_loss(logits.clone(), TokenRows(torch.tensor([11000]), torch.ones(1)), PLAIN)
    assert result.logprobs.item() == pytest.approx(exact[0, 11000].item(), abs=4e-6)
    assert result.entropy.item() == pytest.approx(-(exact.exp() * exact).sum().item(), abs=4e-6)


def test_impossible_targets_are_errors(path) -> None:
    case, logits = logits_case(4, 20, torch.float32)
    logits[2, case.rows.targets[2]] = float("-inf")
    with pytest.raises(ValueError, match=rf"row 2: the logit of target {int(case.rows.targets[2])} is -inf"):
        run_logits(case, logits, PLAIN, "native")
    for outside in (20, -1, 2**40):
        with pytest.raises(ValueError, match=rf"target {outside} is outside the vocabulary \[0, 20\)"):
            run_logits(case.change(targets=torch.tensor([0, 1, outside, 2])), logits, PLAIN, "native")


def test_the_binding_itself_checks_targets_and_temperature() -> None:
    logits, out = torch.randn(2, 5), RowResults.empty(2, torch.device("cpu"))
    rows = TokenRows(torch.tensor([0, 1])).checked(2, 5, logits.device)
    with pytest.raises(ValueError, match=r"target 7 in row 1 is outside the vocabulary \[0, 5\)"):
        native.score_rows(logits, replace(rows, targets=torch.tensor([0, 7])), HeadTail(), out)
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        native.score_rows(logits, replace(rows, temperature=torch.tensor([1.0, 0.0])), HeadTail(), out)
    with pytest.raises(ValueError, match=r"float64 on cpu"):
        native.score_rows(logits.double(), rows, HeadTail(), out)
    with pytest.raises(ValueError, match=r"contiguous along the vocabulary, got strides \(1, 2\)"):
        native.score_rows(torch.randn(5, 2).t(), rows, HeadTail(), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"int64 of shape \(4,\), got torch.int64 \(3,\)"),
        ({"targets": torch.zeros(4, dtype=torch.int32)}, r"got torch.int32 \(4,\)"),
        ({"advantages": torch.zeros(5)}, r"advantages must be a number or of shape \(4,\), got \(5,\)"),
        ({"weights": torch.zeros(4, 1)}, r"weights must be a number or of shape \(4,\), got \(4, 1\)"),
        ({"advantages": None}, r"advantages must be of shape \(4,\), got None"),
        ({"advantages": torch.tensor(1.0)}, r"advantages must be of shape \(4,\), got \(\)"),
    ],
)
def test_wrong_shapes_are_named(change, message) -> None:
    case, logits = logits_case(4, 20, torch.float32)
    with pytest.raises(ValueError, match=message):
        run_logits(case.change(**change), logits, PLAIN, "native")


def test_all_rows_masked(path) -> None:
    case, logits = logits_case(5, 33, torch.bfloat16)
    for change in ({"advantages": torch.zeros(5)}, {"weights": torch.zeros(5)}):
        result, gradient = run_logits(case.change(**change), logits, PLAIN, "native")
        assert result.loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert not result.logprobs.isnan().any()


def test_strided_logits(path) -> None:
    """Rows of a wider matrix, and a transposed matrix: the same bits as their contiguous copies."""
    case, logits = logits_case(6, 75, torch.bfloat16)
    _, expected = run_logits(case, logits, PLAIN, "native")
    wide = torch.full((6, 100), 9.0, dtype=torch.bfloat16)
    wide[:, :75] = logits
    for view in (wide[:, :75], logits.t().contiguous().t()):
        leaf = view.detach().requires_grad_()
        result = policy_loss(leaf, case.rows, PLAIN)
        assert torch.equal(torch.autograd.grad(result.loss, leaf)[0], expected)
    assert (wide[:, 75:] == 9).all()


def test_gradient_lies_in_the_logits_and_is_handed_out_once() -> None:
    case, logits = logits_case(5, 40, torch.float32)
    leaf = logits.detach().requires_grad_()
    consumed = leaf * 1
    result = policy_loss(consumed, case.rows, PLAIN)
    (gradient,) = torch.autograd.grad(3 * result.loss, leaf, retain_graph=True)
    _, expected = run_logits(case, logits, PLAIN, "reference")
    assert torch.allclose(gradient, 3 * expected, atol=2e-6)
    assert torch.equal(consumed.detach(), gradient)
    with pytest.raises(RuntimeError, match="hands out its gradient once"):
        torch.autograd.grad(result.loss, leaf)


def test_autograd_sees_that_the_logits_changed() -> None:
    leaf = torch.randn(3, 7, requires_grad=True)
    saved = torch.tanh(leaf)
    result = policy_loss(saved, TokenRows(torch.zeros(3, dtype=torch.int64), torch.ones(3)), PLAIN)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


def test_without_gradient_the_logits_stay() -> None:
    case, logits = logits_case(5, 40, torch.bfloat16)
    kept = logits.clone()
    result = policy_loss(logits, case.rows, PLAIN)
    assert torch.equal(logits, kept)
    assert not result.loss.requires_grad
    with_gradient, _ = run_logits(case, logits, PLAIN, "native")
    assert torch.equal(result.loss, with_gradient.loss.detach())


def test_row_offsets_beyond_32_bits(path) -> None:
    """Two rows 2³¹ + 8 elements apart in untouched (never resident) memory."""
    vocab, stride = 300, 2**31 + 8
    case, logits = logits_case(2, vocab, torch.bfloat16)
    far = torch.empty(stride + vocab, dtype=torch.bfloat16).as_strided((2, vocab), (stride, 1))
    far.copy_(logits)
    out, near = RowResults.empty(2, far.device), RowResults.empty(2, far.device)
    rows = case.rows.checked(2, vocab, far.device)
    assert native.policy_rows(far, rows, HeadTail(), PLAIN, out, True) == -1
    native.policy_rows(logits, rows, HeadTail(), PLAIN, near, True)
    assert torch.equal(far, logits)
    assert torch.equal(out.logprobs, near.logprobs)


def test_more_rows_than_a_16_bit_grid(path) -> None:
    num_rows = 70_000
    case, logits = logits_case(num_rows, 5, torch.float32)
    ours, gradient = run_logits(case, logits, TokenLoss(PpoClip()), "native")
    exact, exact_gradient = run_logits(case.to(torch.float64), logits.double(), TokenLoss(PpoClip()), "reference")
    assert (ours.logprobs - exact.logprobs).abs().max() < 3e-6
    assert (gradient - exact_gradient).abs().max() < 2e-5


def test_paths_are_named() -> None:
    with pytest.raises(ValueError, match="got 'sse9'"):
        native.force_path("sse9")
    assert native.path() == supported_paths()[0]
    native.force_path("portable")
    assert native.path() == "portable"
    native.force_path("auto")


def test_denormals_survive_the_import() -> None:
    code = (
        "import torch, fastrl.kernels as k; x = torch.randn(64, 50);"
        "k.policy_loss(x, k.TokenRows(torch.zeros(64, dtype=torch.int64), torch.ones(64)), k.TokenLoss());"
        "tiny = torch.full((4096,), 1e-40); assert ((tiny * 0.5) > 0).all(); assert 1e-310 * 0.5 > 0"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)
