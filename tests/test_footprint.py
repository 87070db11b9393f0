"""What is predicted from a config alone against what training takes, in a process of its own."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from fastrl.config.schema import ModelConfig, OptimizerConfig
from fastrl.kernels import Head, TokenLoss, chunks, native
from fastrl.kernels.rows import TokenRows
from fastrl.plan.compiled import bytes_left_out
from fastrl.plan.footprint import (
    LOSS_ROW_BYTES,
    Footprint,
    LiveBytes,
    _full_batch,
    footprint,
    loss_gradients,
    num_bytes,
    storageless_model,
)
from fastrl.policy.attention import choose_attention, use_packed_attention
from fastrl.policy.model import Policy
from fastrl.policy.rms_norm import keep_norm_inputs

SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "qwen3, small vocabulary": Qwen3Config(**SHAPE, vocab_size=2000, tie_word_embeddings=True),
    "llama, large vocabulary": LlamaConfig(**SHAPE, vocab_size=32000, tie_word_embeddings=False),
    "gemma3, windows": Gemma3TextConfig(**SHAPE, vocab_size=4000, sliding_window=64),
    "gemma2, eager": Gemma2Config(**SHAPE, vocab_size=4000, sliding_window=64),
}


def predicted(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    budget: int,
    length: int,
    is_checkpointed: bool,
    optimizer: OptimizerConfig | None = None,
    num_ranks: int = 1,
    lora_rank: int = 0,
) -> Footprint:
    settings = ModelConfig(gradient_checkpointing=is_checkpointed, lora_rank=lora_rank)
    choice = choose_attention("auto", torch.device("cpu"), dtype, config)
    with storageless_model(config, dtype, choice, settings) as model:
        return footprint(model, budget, length, "cpu", optimizer or OptimizerConfig(), num_ranks)


def test_live_bytes_are_those_of_living_storages():
    with LiveBytes() as live:
        a = torch.empty(1000)
        view = a[10:].view(2, -1)
        b = torch.empty(500, dtype=torch.bfloat16)
        assert live.live == 5000
        del a, b
        assert live.live == 4000  # the view holds it
        del view
        assert (live.live, live.peak) == (0, 5000)
    old = torch.empty(1000)
    with LiveBytes([old]) as live:
        kept = [old.view(10, 100), old + 1]
        assert live.live == 4000 and len(kept) == 2


def test_parts_that_can_be_counted_by_hand():
    config = LlamaConfig(**SHAPE, vocab_size=1000, tie_word_embeddings=False)
    count = 2 * 1000 * 384 + 384 + 6 * (2 * 384 + 3 * 384 * 1024 + 2 * 384 * 384 + 2 * 384 * 128)
    fp32 = predicted(config, torch.float32, 256, 64, False)
    assert (fp32.weights, fp32.gradients, fp32.masters, fp32.optimizer) == (4 * count, 4 * count, 0, 8 * count)
    bf16 = predicted(config, torch.bfloat16, 256, 64, False)
    assert (bf16.weights, bf16.gradients, bf16.masters) == (2 * count, 4 * count, 4 * count)
    assert fp32.logits == 4 * 256 * 1000  # the head's gradient goes into its `.grad`
    doubled = predicted(config, torch.float32, 512, 64, False)
    assert doubled.activations == pytest.approx(2 * fp32.activations, rel=0.01)
    checkpointed = predicted(config, torch.float32, 512, 64, True)
    inputs = 6 * 512 * 384 * 4
    assert inputs < checkpointed.activations < 2 * inputs < doubled.activations / 5
    assert isinstance(fp32, Footprint) and fp32.peak > fp32.static


def test_kinds_of_optimizer_by_hand():
    config = LlamaConfig(**SHAPE, vocab_size=1000, tie_word_embeddings=False)
    vectors, embedding = 13 * 384, 1000 * 384
    matrices = 2 * embedding + 6 * (3 * 384 * 1024 + 2 * 384 * 384 + 2 * 384 * 128)
    count = matrices + vectors
    bf16 = predicted(config, torch.bfloat16, 256, 64, True, OptimizerConfig(kind="adamw-bf16"))
    assert (bf16.weights, bf16.gradients, bf16.masters, bf16.optimizer) == (2 * count, 4 * count, 0, 8 * count)
    eight = predicted(config, torch.bfloat16, 256, 64, True, OptimizerConfig(kind="adamw-8bit", grad_dtype="bfloat16"))
    tables = 44 * 2 * 256 * 4  # what the codes of each moment of 44 matrices stand for
    assert (eight.weights, eight.gradients, eight.masters) == (2 * count, 2 * count, 0)
    assert eight.optimizer == 2 * matrices + 2 * 4 * matrices // 256 + tables + 8 * vectors
    assert eight.update == 8 * max(embedding, 384 * 1024) and eight.peak == eight.static + max(
        eight.update, eight.activations + eight.logits + eight.working
    )


def test_shards_by_hand():
    """Three ranks: 1000 rows of the embedding are 334, 128 of a key projection 43, 384 are 128, 1024 are 342."""
    config = LlamaConfig(**SHAPE, vocab_size=1000, tie_word_embeddings=False)
    one = predicted(config, torch.bfloat16, 256, 64, True)
    three = predicted(config, torch.bfloat16, 256, 64, True, num_ranks=3)
    block = 2 * 342 * 384 + 128 * 1024 + 2 * 128 * 384 + 2 * 43 * 384 + 2 * 128
    count = 2 * 334 * 384 + 128 + 6 * block
    assert (three.weights, three.gradients, three.masters, three.optimizer) == (4 * count, 4 * count, 0, 8 * count)
    root, whole = 2 * 1000 * 384 + 384, 3 * 384 * 1024 + 2 * 384 * 384 + 2 * 384 * 128 + 2 * 384
    assert three.update == (2 + 2 + 4) * root + 4 * root // 3
    assert three.gathered == (2 + 2) * root + (2 * 2 + 2 + 4) * whole and one.gathered == 0
    assert three.activations == one.activations
    assert three.logits == one.logits + 2 * 1000 * 384  # autograd hands a shard's gradient of the head over
    assert three.logits + three.working == one.logits + one.working  # the fullest moment comes later
    assert three.peak == three.static + three.activations + three.logits + three.working + three.gathered


def test_gradients_that_are_reduced_once_are_those_of_the_whole_model():
    config = LlamaConfig(**SHAPE, vocab_size=1000, tie_word_embeddings=False)
    settings = OptimizerConfig(reduce_every="update")
    count = predicted(config, torch.bfloat16, 256, 64, True).weights // 2
    every, once = (predicted(config, torch.bfloat16, 256, 64, True, o, num_ranks=3) for o in (None, settings))
    assert once.gradients == 4 * count > 2.9 * every.gradients
    assert once.peak - every.peak == once.gradients - every.gradients
    offloaded = predicted(config, torch.bfloat16, 256, 64, True, replace(settings, offload=True))
    both = [predicted(config, torch.bfloat16, 256, 64, True, o) for o in (OptimizerConfig(offload=True), settings)]
    assert offloaded.gradients == both[0].gradients and offloaded.gathered == both[0].gathered + 4 * count
    assert both[1] == predicted(config, torch.bfloat16, 256, 64, True)  # one rank without shards reduces nothing


def measured_loss(hidden_NH: Tensor, weight_VH: Tensor, into: Tensor | None) -> int:
    """Most bytes that the chunk driver holds at once, with the native row kernel."""
    targets, ones = torch.arange(len(hidden_NH)) % len(weight_VH), torch.ones(len(hidden_NH))
    rows = TokenRows(targets, ones, ones).checked(*hidden_NH.shape[:1], len(weight_VH), hidden_NH.device)
    existing = [hidden_NH, weight_VH, *vars(rows).values(), into]
    with LiveBytes(tensor for tensor in existing if isinstance(tensor, Tensor)) as live:
        wanted = chunks.Wanted(True, True, into=into)
        chunks.linear_policy_loss(native, hidden_NH, Head(weight_VH), rows, TokenLoss(), wanted)
    return live.peak


@pytest.mark.parametrize("has_buffer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [7, 100, 507])
def test_the_loss_takes_what_its_driver_takes(num_rows, dtype, has_buffer, monkeypatch):
    """One chunk and several, down to the columns of the rows; bfloat16 sums on CPU need a product besides."""
    for name in ("CPU_LOGIT_BYTES", "CPU_GIVEN_LOGIT_BYTES"):
        monkeypatch.setattr(chunks, name, 1 << 18)
    monkeypatch.setattr(chunks, "CPU_CACHE_BYTES", 0)
    monkeypatch.setattr(chunks, "SLICE_BYTES", 1 << 14)
    hidden_NH, weight_VH = torch.randn(num_rows, 64).to(dtype), torch.randn(1003, 64).to(dtype).requires_grad_()
    into = torch.zeros(1003, 64) if has_buffer else None
    with LiveBytes([hidden_NH, weight_VH]) as live:
        loss_gradients(hidden_NH, weight_VH, "cpu", has_buffer=has_buffer)
    spare = measured_loss(hidden_NH, weight_VH, into) - live.peak
    print(f"{num_rows} rows, {dtype}, {has_buffer}: the driver takes {spare} bytes more than {live.peak}")
    product = chunks.SLICE_BYTES if has_buffer and dtype == torch.bfloat16 else 0
    assert -LOSS_ROW_BYTES * num_rows <= spare - product <= 0


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_chunks_are_the_driver_s_on_either_device(device_type, monkeypatch):
    """2000 rows of 500 float32 logits under a budget of 1000: two chunks of 1000 on a GPU, one on CPU."""
    monkeypatch.setattr(chunks, "CUDA_LOGIT_BYTES", 1500 * 500 * 4)
    monkeypatch.setattr(chunks, "CUDA_MIN_ROWS", 1)
    with FakeTensorMode():
        hidden_NH, weight_VH = torch.empty(2000, 8), torch.empty(500, 8, requires_grad=True)
        _, logits = loss_gradients(hidden_NH, weight_VH, device_type, has_buffer=True)
    assert logits == {"cpu": 2000, "cuda": 1000}[device_type] * 500 * 4


MOE = Qwen3MoeConfig(
    **SHAPE | {"hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16},
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    vocab_size=500,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixtures_of_experts_are_counted_as_they_run(dtype):
    """A forward with storage keeps what one without does. Torch has no rule for the shapes of float32 experts."""
    prediction = predicted(MOE, dtype, 64, 32, False)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(MOE), dtype=dtype).eval()
    keep_norm_inputs(model)
    assert use_packed_attention(model, "sdpa")
    policy = Policy(model)
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
        hidden_NH = policy.hidden_states(policy.micro_batch(_full_batch(64, 32, True)))
        print(f"{dtype}: predicted {prediction.activations} bytes of activations, {live.live} there")
        assert prediction.activations == pytest.approx(live.live, rel=0.02)
    assert hidden_NH.requires_grad and prediction.weights == num_bytes(model.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("name", "is_checkpointed"),
    [
        ("qwen3, small vocabulary", False),
        ("llama, large vocabulary", True),
        *(
            pytest.param(name, is_checkpointed, marks=pytest.mark.slow)
            for name, is_checkpointed in (
                ("qwen3, small vocabulary", True),
                ("llama, large vocabulary", False),
                ("gemma3, windows", False),
                ("gemma3, windows", True),
                ("gemma2, eager", False),
                ("gemma2, eager", True),
            )
        ),
    ],
)
def test_prediction_is_within_15_percent_of_the_resident_peak(name, is_checkpointed, tmp_path):
    """The allocator is told to give back what is freed: glibc's own rule keeps blocks of up to 32 MiB for later."""
    config = CONFIGS[name]
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    expected = predicted(config, torch.float32, 1024, 256, is_checkpointed).peak
    measured = measure(tmp_path / "config.json", "float32", 1024, 256, is_checkpointed, "adamw", "float32", 0)
    print(f"{name}: predicted {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert expected == pytest.approx(measured, rel=0.15)


def measure(*arguments: object, num_ranks: int = 1) -> int:
    """Bytes that `measure_training_peak.py` finds, or `measure_sharded_peak.py`."""
    script = Path(__file__).parent / f"measure_{'training' if num_ranks == 1 else 'sharded'}_peak.py"
    launcher = (
        [] if num_ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    )
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "grad_dtype"),
    [
        ("adamw", "float32"),
        *(
            pytest.param(kind, grad_dtype, marks=pytest.mark.slow)  # they compile their step
            for kind, grad_dtype in (
                ("adamw-bf16", "bfloat16"),
                ("adamw-bf16", "float32"),
                ("adamw-8bit", "bfloat16"),
                ("adamw-8bit", "float32"),
            )
        ),
    ],
)
def test_prediction_for_each_kind_of_optimizer(kind, grad_dtype, tmp_path):
    """bfloat16 weights, of which the optimizer's bytes are the larger part."""
    config = LlamaConfig(**SHAPE | {"hidden_size": 768, "intermediate_size": 2048}, vocab_size=16000)
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    optimizer = OptimizerConfig(kind=kind, grad_dtype=grad_dtype)
    expected = predicted(config, torch.bfloat16, 64, 32, True, optimizer).peak
    measured = measure(tmp_path / "config.json", "bfloat16", 64, 32, True, kind, grad_dtype, 0)
    print(f"{kind}, {grad_dtype}: predicted {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert expected == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_compiled_blocks_do_not_keep_by_hand(dtype):
    """A token, a layer: SiLU's output; in float32 the input of each norm, scaled, too. bfloat16 norms keep none."""
    config = Qwen3Config(**SHAPE, vocab_size=500)
    left_out = bytes_left_out(
        config, dtype, choose_attention("auto", torch.device("cpu"), dtype, config), ModelConfig()
    )
    norms = 2 * 384 + (6 + 2) * 64 if dtype == torch.float32 else 0
    assert left_out == pytest.approx(6 * dtype.itemsize * (1024 + norms), rel=0.01)
    recomputed = ModelConfig(gradient_checkpointing=True)
    assert bytes_left_out(config, dtype, choose_attention("auto", torch.device("cpu"), dtype, config), recomputed) == 0


def test_a_compiler_that_fails_leaves_the_plan_of_plain_blocks(monkeypatch):
    def broken(*args, **kwargs):
        raise torch._dynamo.exc.InternalTorchDynamoError("no rule for this block")

    monkeypatch.setattr(torch, "compile", lambda *args, **settings: broken)
    config = Qwen3Config(**SHAPE, vocab_size=500)
    choice = choose_attention("auto", torch.device("cpu"), torch.float32, config)
    assert bytes_left_out(config, torch.float32, choice, ModelConfig()) == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.slow
def test_prediction_for_compiled_blocks(tmp_path):
    """Of the feed-forward alone, the compiler leaves out SiLU's output: 4 bytes · 1024 · 6 layers a token."""
    config = LlamaConfig(**SHAPE, vocab_size=2000)
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    plain = predicted(config, torch.float32, 2048, 256, False).peak
    choice = choose_attention("auto", torch.device("cpu"), torch.float32, config)
    expected = plain - 2048 * bytes_left_out(config, torch.float32, choice, ModelConfig())
    measured = measure(tmp_path / "config.json", "float32", 2048, 256, "compiled", "adamw", "float32", 0)
    print(f"compiled: predicted {expected / 2**20:.0f} MiB, plain {plain / 2**20:.0f}, measured {measured / 2**20:.0f}")
    assert expected == pytest.approx(measured, rel=0.05) and expected < 0.9 * plain


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_prediction_for_adapters(is_checkpointed, tmp_path):
    """On every linear layer of a frozen model: the weights and, where they are kept, the activations are most of it."""
    config = LlamaConfig(**SHAPE | {"hidden_size": 768, "intermediate_size": 2048}, vocab_size=16000)
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    expected = predicted(config, torch.float32, 512, 128, is_checkpointed, lora_rank=8).peak
    measured = measure(tmp_path / "config.json", "float32", 512, 128, is_checkpointed, "adamw", "float32", 8)
    print(f"adapters: predicted {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert expected == pytest.approx(measured, rel=0.15)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("reduce_every", ["micro-batch", "update"])
def test_prediction_for_two_ranks(reduce_every, tmp_path):
    config = LlamaConfig(**SHAPE | {"hidden_size": 768, "intermediate_size": 2048}, vocab_size=16000)
    config.to_json_file(tmp_path / "config.json", use_diff=False)
    settings = OptimizerConfig(reduce_every=reduce_every)
    expected = predicted(config, torch.bfloat16, 64, 32, True, settings, num_ranks=2).peak
    measured = measure(tmp_path / "config.json", 64, 32, reduce_every, num_ranks=2)
    print(f"two ranks: predicted {expected / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert expected == pytest.approx(measured, rel=0.15)
