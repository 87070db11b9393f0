"""Small updates of bfloat16 weights add up without masters; states round-trip; what cannot run is refused."""

import copy
import math
import sys

import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from fastrl.config.checks import check_train, check_warmup
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    ScratchConfig,
    TaskConfig,
    TrainConfig,
    WarmupConfig,
)
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.bytes import optimizer_bytes
from fastrl.policy.optimizer.choose import build_optimizer, check_optimizer
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records import checkpoints
from fastrl.run.training import train

pytest.importorskip("torchao")
KINDS = ["adamw-bf16", "adamw-8bit"]
CPU = torch.device("cpu")
NUM_UPDATES, LR, COUNT = 10_000, 1e-7, 4096  # 4096: fewer would not be quantised
SPACING = 2.0**-13  # of bfloat16 values in [2⁻⁶, 2⁻⁵), 8 significant bits
HALVES = {"constant gradient": slice(0, COUNT // 2), "noisy gradient": slice(COUNT // 2, COUNT)}


class Weights(nn.Module):
    """4096 weights in [0.018, 0.029], which 10 000 updates at 1e-7 keep among values of one spacing."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = 0.018 + 0.011 * torch.rand(COUNT, generator=generator)
        self.values = nn.Parameter(values.bfloat16().to(dtype))


def update_often(module: Weights, kind: str) -> tuple[Tensor, Tensor]:
    """(movement, path: the sum of absolute movements), both (COUNT,), after NUM_UPDATES through the optimizer."""
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=LR, max_grad_norm=0.0), NUM_UPDATES)
    generator = torch.Generator().manual_seed(1)
    mean = 1e-3 * (0.5 + torch.rand(COUNT, generator=generator))
    noise = torch.zeros(COUNT)
    start, path = module.values.detach().float().clone(), torch.zeros(COUNT)
    for _ in range(NUM_UPDATES):
        noise[HALVES["noisy gradient"]] = torch.randn(COUNT // 2, generator=generator)
        before = module.values.detach().clone()
        module.values.grad = mean * (1 + 3 * noise)
        optimizer.step()
        path += (module.values.detach() - before).abs()
    return module.values.detach().float() - start, path


@pytest.fixture(scope="module")
def reference() -> tuple[Tensor, Tensor]:
    return update_often(Weights(torch.float32), "adamw")


def test_masters_move_exactly_as_float32_and_naive_bfloat16_not_at_all(reference):
    module = Weights()
    update_often(module, "adamw")
    expected = (Weights().values.float() + reference[0]).bfloat16()
    assert torch.equal(module.values, expected) and (module.values != Weights().values).float().mean() > 0.95
    naive = Weights()
    optimizer = torch.optim.AdamW(naive.parameters(), lr=LR, weight_decay=0.0)
    for _ in range(100):
        naive.values.grad = torch.full((COUNT,), 1e-3, dtype=torch.bfloat16)
        optimizer.step()
    assert torch.equal(naive.values, Weights().values)


@pytest.mark.parametrize("kind", ["adamw-bf16", pytest.param("adamw-8bit", marks=pytest.mark.slow)])
def test_stochastic_rounding_moves_as_float32_masters_do(kind, reference):
    """One update δ rounds to a neighbour at distance s with probability δ/s: variance δ(s − δ), so after a path Σδ an
    element is √(s·Σδ) from its master, and the mean of n elements √(s·Σδ/n). Four of these are allowed.

    Not compiled, for time: the arithmetic is the same, and the random numbers are torch's instead of inductor's.
    """
    torch.manual_seed(3)
    with torch.compiler.set_stance("force_eager"):
        movement, _ = update_often(Weights(), kind)
    for name, half in HALVES.items():
        ours, masters, path = movement[half], reference[0][half], reference[1][half]
        deviation = math.sqrt(SPACING * path.mean())
        bound = 4 * deviation / math.sqrt(len(path))
        print(f"{kind}, {name}: {ours.mean():.4e}, masters {masters.mean():.4e}, bound {bound:.1e}")
        assert bound < 0.15 * masters.mean().abs()
        assert ours.mean().item() == pytest.approx(masters.mean().item(), abs=bound)
        assert (ours - masters).std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_draws_anew_for_every_parameter_and_step(kind):
    """A first step of AdamW is lr, here a quarter of a spacing: each element moves with probability 1/4."""
    module = nn.ParameterList(nn.Parameter(torch.full((64, 1024), 0.02).bfloat16()) for _ in range(2))
    start = module[0][0, 0].item()
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=SPACING / 4, max_grad_norm=0.0, beta1=0.0), 2)
    torch.manual_seed(0)
    moved = []
    for _ in range(2):
        for parameter in module:
            parameter.detach().fill_(start)
            parameter.grad = torch.ones(64, 1024)
        optimizer.step()
        assert {(start - value) / SPACING for p in module for value in p.unique().tolist()} == {0.0, 1.0}
        moved += [(p != start).flatten().float() for p in module]
    assert [m.mean().item() for m in moved] == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.25 * 0.75 / 65536))
    correlations = torch.corrcoef(torch.stack(moved)).fill_diagonal_(0.0)
    assert correlations.abs().max() < 4.5 / math.sqrt(65536)


class Layers(nn.Module):
    """A parameter with 8-bit moments, one too small for them, one in float32, one without gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64, dtype=torch.bfloat16)
        self.scale = nn.Parameter(torch.ones(64))
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs.bfloat16()).float() * self.scale


def step(module: Layers, optimizer: Optimizer, seed: int) -> tuple[float, bool]:
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    module(inputs).square().mean().backward()
    return optimizer.step()


def tensors_of(module: Layers, optimizer: Optimizer) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | optimizer.state_tensors()


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grad_dtype", ["float32", "bfloat16"])
def test_resumed_is_bitwise_uninterrupted(kind, grad_dtype):
    """Compiled anew after loading: that must not touch the random numbers either."""
    config = OptimizerConfig(kind=kind, lr=1e-4, grad_dtype=grad_dtype)
    module = Layers()
    optimizer = build_optimizer(module, config, 10)
    assert optimizer.state_tensors() == {}
    for seed in range(2):
        step(module, optimizer, seed)
    stored, random_state = save(optimizer.state_tensors()), torch.get_rng_state()
    tensors = load(stored)
    assert tensors["exp_avg.first.bias"].dtype == tensors["exp_avg_sq.scale"].dtype == torch.float32
    assert ("exp_avg_sq_codes.first.weight" in tensors) == (kind == "adamw-8bit")
    kept = sum(t.numel() * t.element_size() for t in tensors.values()) - 3 * 4  # without three step numbers
    idle, tables = 3 * 8, 2 * 256 * 4 if kind == "adamw-8bit" else 0
    assert optimizer_bytes(module.parameters(), config).states == kept + idle + tables
    twin = copy.deepcopy(module)
    for seed in range(2, 4):
        step(module, optimizer, seed)
    torch._dynamo.reset()
    torch.manual_seed(99)
    resumed = build_optimizer(twin, config, 10)
    resumed.load_state_tensors(tensors)
    torch.set_rng_state(random_state)
    for seed in range(2, 4):
        step(twin, resumed, seed)
    assert_equal(tensors_of(module, optimizer), tensors_of(twin, resumed))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_move_where_they_are_and_a_nan_gradient_moves_nothing(kind):
    module = Layers()
    served = torch.zeros(2, 64, 64, dtype=torch.bfloat16)
    served[1] = module.first.weight.detach()
    module.first.weight.data = served[1]  # rows of an engine's fused tensor
    addresses = [p.data_ptr() for p in module.parameters()]
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=1e-2), 10)
    before = served.clone()
    norm, has_moved = step(module, optimizer, 0)
    assert has_moved and norm > 0 and [p.data_ptr() for p in module.parameters()] == addresses
    assert not served[0].any() and (served[1] != before[1]).float().mean() > 0.9
    expected = {name: value.clone() for name, value in tensors_of(module, optimizer).items()}
    random_state = torch.get_rng_state()
    module(torch.full((2, 64), float("nan"))).sum().backward()
    norm, has_moved = optimizer.step()
    assert norm != norm and not has_moved
    assert_equal(expected, tensors_of(module, optimizer))
    assert torch.equal(torch.get_rng_state(), random_state) and all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("grad_dtype", ["float32", "bfloat16"])
def test_norm_and_clipping(grad_dtype):
    """The norm is a float32 number of the gradients as they are; float32 weights move as torch's AdamW moves them."""
    module, other = Layers(), Layers()
    config = OptimizerConfig(kind="adamw-bf16", lr=1e-3, max_grad_norm=0.01, grad_dtype=grad_dtype)
    optimizer = build_optimizer(module, config, 10)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    for m in (module, other):
        m(inputs).square().mean().backward()
    assert module.first.weight.grad.dtype == getattr(torch, grad_dtype) and module.scale.grad.dtype == torch.float32
    expected = math.sqrt(sum(p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None))
    norm, _ = optimizer.step()
    assert norm == pytest.approx(expected, rel=1e-5) and norm > 0.01
    torch.nn.utils.clip_grad_norm_(other.parameters(), 0.01)
    theirs.step()
    assert torch.allclose(module.scale, other.scale, atol=1e-6)


def test_gradients_that_accumulate_in_bfloat16_lose_what_the_setting_says():
    """M additions, each rounded by at most 2⁻⁹ of the sum so far: at most 2⁻⁹·√(M/3) where gradients agree."""
    num_micro_batches = 64
    generator = torch.Generator().manual_seed(0)
    parts = [1 + 0.5 * torch.randn(COUNT, generator=generator) for _ in range(num_micro_batches)]
    exact = torch.stack(parts).double().sum(0)

    def error(grad_dtype: str) -> float:
        module = Weights()
        build_optimizer(module, OptimizerConfig(kind="adamw-bf16", grad_dtype=grad_dtype), 10)
        for part in parts:
            (module.values.float() * part).sum().backward()
        return ((module.values.grad.double() - exact).norm() / exact.norm()).item()

    exact = torch.stack([p.bfloat16() for p in parts]).double().sum(0)  # backward's own gradients are bfloat16
    assert error("float32") < 1e-6
    assert 1e-3 < error("bfloat16") < 2.0**-9 * math.sqrt(num_micro_batches / 3)


@pytest.mark.parametrize("kind", ["adamw", *KINDS])
def test_the_learning_rate_reaches_every_kind(kind):
    module = Layers()
    optimizer = build_optimizer(module, OptimizerConfig(kind=kind, lr=2.0, schedule="linear", warmup_steps=2), 6)
    rates = []
    for number in range(1, 7):
        optimizer.start_step(number)
        rates.append(float(optimizer.adamw.param_groups[0]["lr"]))
        assert rates[-1] == pytest.approx(optimizer.lr)
    assert rates == pytest.approx([1, 2, 2, 1.5, 1, 0.5])


def test_what_cannot_run_is_refused_before_a_model_is_loaded(monkeypatch):
    check_optimizer("adamw", torch.float32, CPU)
    check_optimizer("adamw-8bit", torch.bfloat16, CPU)
    with pytest.raises(ValueError, match=r"'adamw-8bit' rounds bfloat16 .* would be torch.float32: set model.dtype"):
        check_optimizer("adamw-8bit", torch.float32, CPU)
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install '\.\[low-memory\]'"):
        check_optimizer("adamw-bf16", torch.bfloat16, CPU)


def test_a_missing_compiler_is_found_out_before_a_model_is_loaded():
    torch._dynamo.reset()
    settings = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    message = r"compiles its step, .*No working C\+\+"
    with torch._inductor.config.patch(settings), pytest.raises(ValueError, match=message):
        check_optimizer("adamw-bf16", torch.bfloat16, CPU)


def test_a_run_resumes_bitwise(tmp_path):
    shape = ScratchConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64)  # large enough for 8 bits
    tokenizer = scratch_tokenizer(shape)
    scratch_model(shape, tokenizer, seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def run(name: str, num_steps: int, *, resume: bool = False) -> dict[str, Tensor]:
        config = TrainConfig(
            model=ModelConfig(path=str(tmp_path / "model"), dtype="bfloat16"),
            task=TaskConfig(num_train=20, num_workers=1),
            sampler=SamplerConfig(max_new_tokens=12),
            algorithm=AlgorithmConfig(objective="reinforce"),
            batch=BatchConfig(prompts_per_step=3, rollouts_per_prompt=4, micro_batch_tokens=200),
            optimizer=OptimizerConfig(kind="adamw-8bit", lr=1e-3, grad_dtype="bfloat16"),
            evaluation=EvaluationConfig(at_end=False),
            run=RunConfig(folder=str(tmp_path / name), num_steps=num_steps, scored_rollouts=5, sinks=()),
        )
        checkpoint = train(config, resume=resume) / "checkpoints" / f"step-{num_steps:06d}"
        return load_file(checkpoint / "model.safetensors") | checkpoints.load_tensors(checkpoint)

    uninterrupted = run("a", 3)
    assert any(name.startswith("exp_avg_sq_codes.") for name in uninterrupted)
    run("b", 2)
    assert_equal(uninterrupted, run("b", 3, resume=True))


def test_bfloat16_gradients_need_a_kind_that_takes_them():
    optimizer = OptimizerConfig(grad_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"optimizer.grad_dtype = 'bfloat16' needs a kind without masters"):
        check_train(TrainConfig(model=ModelConfig("x"), optimizer=optimizer))
    with pytest.raises(ValueError, match=r"optimizer.grad_dtype = 'bfloat16' needs a kind without masters"):
        check_warmup(WarmupConfig(optimizer=optimizer))
