"""linear_policy_loss on the native kernel: accuracy over chunks and heads, products, autograd, torch.library."""

from dataclasses import replace

import pytest
import torch
from policy_cases import (
    CAPPED,
    CLIP,
    FULL,
    LOSSES,
    PLAIN,
    Case,
    assert_as_good,
    assert_results_as_good,
    make_case,
    run_linear,
)
from torch.utils._python_dispatch import TorchDispatchMode

from fastrl.kernels import Head, TokenRows, chunks, forced_backend, linear_policy_loss, native, token_logprobs

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(24, 128, 32), (252, 507, 123), (1, 96, 16), (0, 64, 8)]
HEADS = {
    "plain": {},
    "bias": {"has_bias": True},
    "softcap": {"softcap": 5.0},
    "bias_scale_softcap": {"has_bias": True, "scale": 0.7, "softcap": 8.0},
}


@pytest.fixture
def small_chunks(monkeypatch):
    """Logit budgets of 8 KB: many chunks at test sizes, and products of dW in several slices."""
    monkeypatch.setattr(chunks, "CPU_LOGIT_BYTES", 8 << 10)
    monkeypatch.setattr(chunks, "CPU_CACHE_BYTES", 8 << 10)
    monkeypatch.setattr(chunks, "SLICE_BYTES", 4 << 10)


def one_chunk_has(case: Case) -> int:
    return chunks.chunk_rows(case.hidden.shape[0], case.head.weight)


def assert_gradients_as_good(case: Case, loss, **options) -> None:
    ours, our_gradients = run_linear(case, loss, "native", **options)
    plain, plain_gradients = run_linear(case, loss, "reference", **options)
    exact, exact_gradients = run_linear(case.to(torch.float64), loss, "reference", **options)
    assert_results_as_good(ours, plain, exact)
    names = ("hidden", "weight", "bias")
    for name, mine, theirs, true in zip(names, our_gradients, plain_gradients, exact_gradients, strict=False):
        assert mine.dtype == case.hidden.dtype
        assert_as_good(mine, theirs, true, f"gradient of {name}")


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab", "width"), SHAPES)
def test_against_fp64(num_rows, vocab, width, dtype, loss) -> None:
    assert_gradients_as_good(make_case(num_rows, vocab, width, dtype), loss)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_over_many_chunks(small_chunks, dtype, head) -> None:
    case = make_case(61, 507, 40, dtype, **head)
    assert one_chunk_has(case) < 10
    assert_gradients_as_good(case, FULL)


@pytest.mark.parametrize("upstream", [0.0, 0.5, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradient_scales_everything(dtype, upstream) -> None:
    case = make_case(20, 50, 16, dtype, has_bias=True)
    _, once = run_linear(case, CLIP, "native")
    _, scaled = run_linear(case, CLIP, "native", upstream=upstream)
    for plain, times in zip(once, scaled, strict=True):
        assert torch.equal(times, upstream * plain)  # rounded once


class LargeResults(TorchDispatchMode):
    """Names of the operations whose result is as large as `least` elements and lies in memory of its own."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.names = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, known = func(*args, **(kwargs or {})), {x.data_ptr() for x in args if isinstance(x, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.numel() >= self.least and result.data_ptr() not in known:
            self.names.append(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("upstream", [1.0, -0.5])
def test_the_backward_copies_no_gradient_that_is_read_once(upstream) -> None:
    case = make_case(40, 50, 16, torch.bfloat16)
    inputs = [x.requires_grad_() for x in case.inputs]
    loss = upstream * linear_policy_loss(inputs[0], Head(inputs[1]), case.rows, CLIP).loss
    with LargeResults(40 * 16) as made:
        kept = torch.autograd.grad(loss, inputs, retain_graph=True)
        assert made.names == ["clone", "clone"]
        again = torch.autograd.grad(loss, inputs)
    assert made.names == ["clone", "clone"]
    assert all(torch.equal(first, second) for first, second in zip(kept, again, strict=True))


def test_rows_without_gradient_are_not_computed() -> None:
    case = make_case(40, 64, 16, torch.float32)
    idle = case.rows.advantages == 0
    result, (hidden_gradient, _) = run_linear(case, PLAIN, "native")
    assert torch.equal(result.logprobs.isnan(), idle)
    assert torch.equal(result.entropy.isnan(), idle)
    assert (hidden_gradient[idle] == 0).all()
    scored, gradients = run_linear(case, PLAIN, "native", score_all=True)
    logprobs, entropy = token_logprobs(case.hidden, case.head, case.rows)
    assert torch.allclose(scored.logprobs, logprobs, atol=1e-6)
    assert torch.allclose(scored.entropy, entropy, atol=1e-6)
    assert torch.equal(gradients[0], hidden_gradient)
    assert torch.equal(scored.loss, result.loss)


class ProductCounter(TorchDispatchMode):
    """Multiply-adds of every matrix product run under it."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("matmul", "bmm", "linear", "einsum"), f"unexpected product {name}"
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.total += left.numel() * right.shape[1]
        return func(*args, **(kwargs or {}))


def products(case: Case, loss, *, hidden: bool = True, weight: bool = True, **options) -> float:
    """Matrix products of the chunk driver, in units of one (N,H)·(H,V) product over all rows."""
    wanted = chunks.Wanted(hidden, weight)
    with ProductCounter() as counter:
        chunks.linear_policy_loss(native, case.hidden, case.head, case.rows, loss, wanted, **options)
    return counter.total / (case.hidden.numel() * case.head.weight.shape[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_paid_for(small_chunks, dtype) -> None:
    case = make_case(64, 96, 32, dtype)  # a quarter of the rows has advantage 0
    assert products(case, CAPPED) == pytest.approx(3)
    assert products(case, PLAIN) == pytest.approx(3 * 0.75)
    assert products(case, PLAIN, score_all=True) == pytest.approx(3 * 0.75 + 0.25)
    assert products(case, CAPPED, weight=False) == pytest.approx(2)
    assert products(case, CAPPED, hidden=False) == pytest.approx(2)
    assert products(case, CAPPED, hidden=False, weight=False) == pytest.approx(1)
    assert products(case.change(advantages=torch.zeros(64)), PLAIN) == 0


def test_frozen_inputs_get_the_same_gradients_beside_them() -> None:
    case = make_case(30, 64, 16, torch.float32)
    _, (hidden_gradient, weight_gradient) = run_linear(case, CLIP, "native")
    arguments = (case.rows, CLIP)
    hidden = case.hidden.clone().requires_grad_()
    result = linear_policy_loss(hidden, case.head, *arguments)
    assert torch.equal(torch.autograd.grad(result.loss, hidden)[0], hidden_gradient)
    weight = case.head.weight.clone().requires_grad_()
    result = linear_policy_loss(case.hidden, Head(weight), *arguments)
    assert torch.equal(torch.autograd.grad(result.loss, weight)[0], weight_gradient)
    result = linear_policy_loss(case.hidden, case.head, *arguments)
    assert not result.loss.requires_grad


@pytest.mark.parametrize("upstream", [1.0, 2.0, 0.0, -0.5])
def test_a_second_backward_doubles_and_never_more(upstream) -> None:
    case = make_case(12, 40, 8, torch.float32)
    hidden, weight = (x.clone().requires_grad_() for x in (case.hidden, case.head.weight))
    result = linear_policy_loss(hidden, Head(weight), case.rows, PLAIN)
    expected = [upstream * x for x in torch.autograd.grad(result.loss, (hidden, weight), retain_graph=True)]
    (upstream * result.loss).backward(retain_graph=True)
    assert torch.allclose(hidden.grad, expected[0])
    assert torch.allclose(weight.grad, expected[1])
    (upstream * result.loss).backward()
    assert torch.allclose(hidden.grad, 2 * expected[0])
    assert torch.allclose(weight.grad, 2 * expected[1])


def test_tied_head_gets_both_gradients() -> None:
    """Embedding and head are one matrix: its gradient is the sum of both uses, as the reference's autograd has it."""
    case = make_case(18, 40, 8, torch.float32)
    gradients = {}
    for backend in ("native", "reference"):
        table = case.head.weight.clone().requires_grad_()
        with forced_backend(backend):
            hidden = torch.tanh(table[case.rows.targets.flip(0)])
            result = linear_policy_loss(hidden, Head(table), case.rows, CLIP)
            (gradients[backend],) = torch.autograd.grad(result.loss, table)
    assert torch.allclose(gradients["native"], gradients["reference"], rtol=1e-4, atol=1e-5)
    assert gradients["native"].abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_into_a_given_buffer(small_chunks, dtype) -> None:
    case = make_case(60, 96, 32, dtype, has_bias=True)
    exact = run_linear(case.to(torch.float64), FULL, "reference")[1]
    plain = run_linear(case, FULL, "reference")[1]
    hidden, weight, bias = (x.detach().requires_grad_() for x in case.inputs)
    buffer = torch.full((96, 32), 2.0)
    result = linear_policy_loss(hidden, Head(weight, bias), case.rows, FULL, grad_weight=buffer)
    gradients = torch.autograd.grad(result.loss, (hidden, weight, bias), allow_unused=True)
    assert gradients[1] is None
    assert_as_good(buffer - 2, plain[1], exact[1], "gradient of weight in the buffer")
    assert_as_good(gradients[0], plain[0], exact[0], "gradient of hidden")
    assert_as_good(gradients[2], plain[2], exact[2], "gradient of bias")


def test_a_given_buffer_needs_upstream_one_and_grad_mode() -> None:
    case = make_case(8, 24, 8, torch.float32)
    hidden, buffer = case.hidden.clone().requires_grad_(), torch.zeros(24, 8)
    arguments = (case.head, case.rows, PLAIN)
    result = linear_policy_loss(hidden, *arguments, grad_weight=buffer)
    with pytest.raises(RuntimeError, match="scale by the rows' weights"):
        (2 * result.loss).backward()
    before = buffer.clone()
    with torch.no_grad():
        linear_policy_loss(hidden, *arguments, grad_weight=buffer)
    assert torch.equal(buffer, before)
    with pytest.raises(ValueError, match=r"grad_weight must be float32 of shape \(24, 8\), got torch.bfloat16"):
        linear_policy_loss(hidden, *arguments, grad_weight=buffer.bfloat16())


def test_many_chunks_lose_no_precision_in_bf16(monkeypatch) -> None:
    """512 chunks of one row: dW summed in bf16 would be off by several percent."""
    monkeypatch.setattr(chunks, "chunk_rows", lambda *sizes, **options: 1)
    case = make_case(512, 64, 16, torch.bfloat16)
    case = case.change(advantages=torch.ones(512))
    ours = run_linear(case, PLAIN, "native")[1][1]
    monkeypatch.undo()
    plain = run_linear(case, PLAIN, "reference")[1][1]
    exact = run_linear(case.to(torch.float64), PLAIN, "reference")[1][1]
    assert_as_good(ours, plain, exact, "gradient of weight")


def test_chunk_sizes() -> None:
    weight = torch.empty(151936, 1024, dtype=torch.bfloat16, device="meta")
    spare = 4 * weight.numel()
    assert chunks.chunk_rows(1024, weight, spare) == 1024  # 311 MB of logits < 256 MB + the fp32 dW it saves
    assert chunks.chunk_rows(4096, weight, spare) == 820  # five even chunks below 256 MB
    assert chunks.chunk_rows(1024, weight) == 512
    assert chunks.chunk_rows(1024, weight, has_buffer=True) == 205  # five even chunks below 64 MB
    assert chunks.chunk_rows(0, weight) == 1
    assert chunks.chunk_rows(10_000, torch.empty(1000, 128, device="meta")) == 1000  # 4 MB: logits stay in cache


def test_no_rows_and_all_masked() -> None:
    for case in (make_case(0, 24, 8, torch.bfloat16), make_case(5, 24, 8, torch.bfloat16)):
        case = case.change(advantages=torch.zeros_like(case.rows.advantages))
        result, gradients = run_linear(case, PLAIN, "native")
        assert result.loss.item() == 0
        assert [x.shape for x in gradients] == [x.shape for x in case.inputs]
        assert all((x == 0).all() for x in gradients)


def test_strided_inputs() -> None:
    """Transposed hidden states and weights, every second target: the gradients of their contiguous copies."""
    case = make_case(26, 60, 12, torch.float32)
    _, expected = run_linear(case, CLIP, "native")
    hidden, weight = (x.t().contiguous().t().requires_grad_() for x in case.inputs)
    targets = torch.stack((case.rows.targets, case.rows.targets), 1)[:, 0]
    assert not (hidden.is_contiguous() or weight.is_contiguous() or targets.is_contiguous())
    result = linear_policy_loss(hidden, Head(weight), case.change(targets=targets).rows, CLIP)
    for mine, theirs in zip(torch.autograd.grad(result.loss, (hidden, weight)), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_runs_agree_bitwise(small_chunks) -> None:
    case = make_case(50, 300, 32, torch.bfloat16)
    first, second = run_linear(case, FULL, "native"), run_linear(case, FULL, "native")
    assert torch.equal(first[0].loss, second[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_an_impossible_target_is_named_by_its_own_row(small_chunks) -> None:
    """Row 50 in the caller's numbering, although chunks and compaction moved it."""
    case = make_case(60, 96, 8, torch.float32, has_bias=True)
    targets = torch.where(case.rows.targets == 7, 8, case.rows.targets)
    targets[50] = 7
    bias = case.head.bias.clone()
    bias[7] = float("-inf")
    case = replace(case, head=replace(case.head, bias=bias)).change(targets=targets)
    assert case.rows.advantages[50] != 0
    with pytest.raises(ValueError, match="row 50: the logit of target 7 is -inf"):
        run_linear(case, PLAIN, "native")
    with pytest.raises(ValueError, match=r"target 96 is outside the vocabulary \[0, 96\)"):
        run_linear(case.change(targets=targets.index_fill(0, torch.tensor([3]), 96)), PLAIN, "native")


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "message"),
    [
        (torch.zeros(4, 8), torch.zeros(9, 7), None, r"got \(4, 8\) and \(9, 7\)"),
        (torch.zeros(4, 8), torch.zeros(9, 8).bfloat16(), None, "torch.float32 on cpu and torch.bfloat16 on cpu"),
        (torch.zeros(4, 8), torch.zeros(9, 8), torch.zeros(8), r"bias must be of shape \(9,\), got \(8,\)"),
    ],
)
def test_mismatched_heads_are_refused(hidden, weight, bias, message) -> None:
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(
            hidden, Head(weight, bias), TokenRows(torch.zeros(4, dtype=torch.int64), torch.ones(4)), PLAIN
        )


def operator_arguments(case: Case) -> tuple:
    hidden, weight, bias = (x.detach().requires_grad_() for x in case.inputs)
    return (
        hidden, weight, bias, 8.0, 0.7, *vars(case.rows).values(),
        "ppo_clip", [0.2, 0.2, 0.0], 0.1, 0.05, 1.3, False, True, True, True,
    )  # fmt: skip


def test_opcheck() -> None:
    case = make_case(6, 24, 8, torch.float32, has_bias=True)
    arguments = operator_arguments(case)
    torch.library.opcheck(torch.ops.fastrl.linear_policy_loss.default, arguments)
    strided = arguments[0].detach().t().contiguous().t().requires_grad_()
    torch.library.opcheck(torch.ops.fastrl.linear_policy_loss.default, (strided, *arguments[1:]))
    scoring = (case.hidden, case.head.weight, None, None, 1.0, case.rows.targets, case.rows.temperature)
    torch.library.opcheck(torch.ops.fastrl.token_logprobs.default, scoring)


def test_compiles_whole_and_once() -> None:
    """fullgraph, the same numbers as eager, and nothing compiled anew for other numbers of rows and temperatures."""
    compiled_graphs = []

    def backend(graph, inputs):
        compiled_graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def step(hidden, weight, targets, advantages, temperature):
        rows = TokenRows(targets, advantages, 0.5, temperature=temperature)
        result = linear_policy_loss(hidden * 2, Head(weight), rows, CAPPED)
        return 3 * result.loss, result.logprobs, token_logprobs(hidden, Head(weight), TokenRows(targets))[1]

    torch._dynamo.reset()
    num_graphs = 0
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for num_rows in (6, 11, 30):
        case = make_case(num_rows, 24, 8, torch.float32, seed=num_rows)
        hidden, weight = (x.requires_grad_() for x in case.inputs)
        arguments = (hidden, weight, case.rows.targets, case.rows.advantages, case.rows.temperature)
        eager, traced = step(*arguments), compiled(*arguments)
        for plain, whole in zip(eager, traced, strict=True):
            assert torch.equal(plain, whole)
        plain_gradients = torch.autograd.grad(eager[0], (hidden, weight))
        whole_gradients = torch.autograd.grad(traced[0], (hidden, weight))
        for plain, whole in zip(plain_gradients, whole_gradients, strict=True):
            assert torch.allclose(plain, whole, rtol=1e-6)
        num_graphs = num_graphs or len(compiled_graphs)
    assert len(compiled_graphs) == num_graphs > 0
