"""`fastrl plan`: parts that can be counted by hand, a budget that really fits, paths, and no weight read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import plan_table
import pytest
import torch
from test_footprint import SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import fastrl.plan.plan as planning
from fastrl.cli import main
from fastrl.config.schema import AlgorithmConfig, BatchConfig, ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.plan.cards import named_card
from fastrl.plan.expected import expected_seconds
from fastrl.plan.footprint import Footprint
from fastrl.plan.plan import GIB, make_plan, paths, plan_text
from fastrl.plan.savings import CHECKPOINTING, EARLY, EIGHT_BITS, NO_MASTERS, fitting_settings, savings_text
from fastrl.plan.workload import Workload
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.bytes import training_bytes
from fastrl.policy.pretrained import Pretrained
from fastrl.sampling.kv_budget import kv_cache_bytes

NUM_BLOCKS = 2
CUDA = {"device_type": "cuda", "memory_gib": 64.0, "prompt_tokens": 64}
BATCH = BatchConfig(prompts_per_step=4, rollouts_per_prompt=4, micro_batch_tokens=512)


@pytest.fixture
def config(countdown_folder, tmp_path) -> TrainConfig:
    """A folder with the config and the tokenizer only: there are no weights to load."""
    for path in countdown_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    return TrainConfig(model=ModelConfig(str(tmp_path)), batch=BATCH, sampler=SamplerConfig(max_new_tokens=16))


def test_parts_by_hand(config):
    plan = make_plan(config, device_type="cpu", memory_gib=1.0, prompt_tokens=11)
    architecture = json.loads(Path(config.model.path, "config.json").read_text())
    assert (architecture["hidden_size"], architecture["num_hidden_layers"], architecture["head_dim"]) == (32, 2, 16)
    block = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 16
    count = architecture["vocab_size"] * 32 + 2 * block + 32
    assert plan.training.weights == plan.training.gradients == 4 * count and plan.training.optimizer == 8 * count
    assert plan.work.sequence_tokens == 27
    assert plan.kv_cache == 512 * 27 * 2 * 2 * 2 * 16 * 4  # sequences, tokens, layers, K and V, heads, size, fp32
    assert plan.checkpoint == plan.resident == 12 * count
    assert plan.second_models == 0 and plan.peak <= plan.memory == GIB
    with_reference = replace(config, algorithm=AlgorithmConfig(kl_coef=0.1))
    assert make_plan(with_reference, device_type="cpu", memory_gib=1.0, prompt_tokens=11).second_models == 4 * count
    teacher = {"algorithm.signals": ("distillation",), "algorithm.distillation.teacher": config.model.path}
    taught = make_plan(with_settings(with_reference, teacher), device_type="cpu", memory_gib=1.0, prompt_tokens=11)
    assert taught.second_models == 8 * count


def test_a_critics_parts_by_hand(config):
    """A second backbone with a head of 33 values: float32 weights, moments, and both once more for a checkpoint.

    Its gradients lie where the policy's were, but for the 33.
    """
    machine = {"device_type": "cpu", "memory_gib": 1.0, "prompt_tokens": 11}
    alone = make_plan(config, **machine)
    critic = {"algorithm.objective": "none", "algorithm.signals": ("gae",)}
    ours = make_plan(with_settings(config, critic), **machine)
    count = alone.training.weights // 4 + 32 + 1  # embedding and head are tied
    assert (ours.learners, alone.learners) == (12 * count + 4 * 33, 0)
    assert ours.checkpoint - alone.checkpoint == 12 * count and ours.peak - alone.peak == 24 * count + 4 * 33
    assert "models that signals train" in plan_text(ours) and "models that signals train" not in plan_text(alone)
    penalised = make_plan(with_settings(config, critic | {"algorithm.gae.kl_coef": 1e-3}), **machine)
    assert penalised.second_models == alone.training.weights
    adapters = make_plan(with_settings(config, critic | {"model.lora_rank": 2}), **machine)
    assert adapters.learners == 16 * count - adapters.training.gradients  # beyond the adapters' own
    two = make_plan(with_settings(config, critic), num_ranks=2, **machine)
    assert two.learners == pytest.approx(6 * count, rel=0.01)


def test_the_largest_budget_fits_and_a_larger_one_does_not(config):
    memory = 0.25
    config = replace(config, batch=replace(BATCH, prompts_per_step=4096))
    best = make_plan(config, device_type="cpu", memory_gib=memory, prompt_tokens=11).fitting_tokens
    assert best > 512

    def peak(tokens: int) -> int:
        changed = replace(config, batch=replace(config.batch, micro_batch_tokens=tokens))
        return make_plan(changed, device_type="cpu", memory_gib=memory, prompt_tokens=11).training.peak

    assert peak(int(0.97 * best)) <= memory * GIB < peak(int(1.03 * best))


def test_recomputing_lowers_activations_and_raises_the_budget(config):
    plain = make_plan(config, device_type="cpu", memory_gib=0.25, prompt_tokens=11)
    model = replace(config.model, gradient_checkpointing=True)
    ours = make_plan(replace(config, model=model), device_type="cpu", memory_gib=0.25, prompt_tokens=11)
    assert ours.training.activations < 0.4 * plain.training.activations
    assert ours.fitting_tokens > plain.fitting_tokens


def test_a_gpu_can_be_planned_without_one(config):
    plan = make_plan(config, device_type="cuda", memory_gib=80, prompt_tokens=11)
    assert plan.training.masters == 2 * plan.training.weights  # bfloat16 weights, float32 masters
    assert plan.checkpoint == 7 * plan.training.weights and plan.resident == plan.kv_cache * plan.work.keeps_kv_cache
    assert "packed" in paths(plan.work)["attention"] and paths(plan.work)["device"] == "cuda, weights in bfloat16"
    tight = make_plan(config, device_type="cuda", memory_gib=0.0001, prompt_tokens=11)
    assert tight.fitting_tokens == 0 and tight.peak > tight.memory


@pytest.fixture
def larger(tmp_path) -> TrainConfig:
    """Two blocks of width 384, one sequence of 256 tokens a micro-batch."""
    LlamaConfig(
        **SHAPE | {"num_hidden_layers": NUM_BLOCKS}, vocab_size=4000, architectures=["LlamaForCausalLM"]
    ).save_pretrained(tmp_path)
    sampler = SamplerConfig(kind="embedded", max_new_tokens=192, batch_size=1)
    return TrainConfig(ModelConfig(str(tmp_path)), sampler=sampler, batch=replace(BATCH, micro_batch_tokens=256))


@pytest.fixture
def counted_once(monkeypatch) -> None:
    """A footprint does not depend on the memory that there is: the same workload is counted once."""
    known, own = {}, planning._training

    def training(work: Workload, model: PreTrainedModel, num_tokens: int) -> Footprint:
        key = repr(work), num_tokens
        if key not in known:
            known[key] = own(work, model, num_tokens)
        return known[key]

    monkeypatch.setattr(planning, "_training", training)


@pytest.mark.usefixtures("counted_once")
def test_savings_are_the_first_that_fit(larger):
    machine = {"device_type": "cuda", "prompt_tokens": 64}

    def peak(settings: dict[str, object]) -> int:
        return make_plan(with_settings(larger, settings), memory_gib=1.0, **machine).peak

    steps = [{}, CHECKPOINTING, CHECKPOINTING | NO_MASTERS, CHECKPOINTING | EIGHT_BITS]
    peaks = [peak(settings) for settings in steps]
    assert peaks == sorted(peaks, reverse=True)
    for settings, needed in zip(steps, peaks, strict=True):
        assert fitting_settings(larger, memory_gib=(needed + 1e5) / GIB, **machine) == settings
    assert fitting_settings(larger, memory_gib=(peaks[-1] - 1e5) / GIB, **machine) == {}
    batch = {"batch.micro_batch_tokens": 1024}
    found = fitting_settings(with_settings(larger, batch), memory_gib=(peaks[-1] + 3e6) / GIB, **machine)
    tokens = found.pop("batch.micro_batch_tokens")
    assert found == steps[-1] and 256 <= tokens < 1024
    on_cpu = {"device_type": "cpu", "prompt_tokens": 64}
    last = steps[-1] | {"model.dtype": "bfloat16"}
    needed = make_plan(with_settings(larger, last), memory_gib=1.0, **on_cpu).peak
    assert fitting_settings(larger, memory_gib=(needed + 1e5) / GIB, **on_cpu) == last


def test_flex_attention_is_padded_and_has_no_backward_on_cpu(larger):
    flex = replace(larger, model=replace(larger.model, attention="flex_attention"))
    plan = make_plan(flex, device_type="cuda", memory_gib=1.0, prompt_tokens=64)
    assert paths(plan.work)["attention"].startswith("flex_attention, padded (asked for by model.attention")
    assert (
        plan.training.activations
        >= make_plan(larger, device_type="cuda", memory_gib=1.0, prompt_tokens=64).training.activations
    )
    with pytest.raises(ValueError, match=r"'flex_attention' has no backward on CPU"):
        make_plan(flex, device_type="cpu", memory_gib=1.0, prompt_tokens=64)


def test_savings_are_said_as_in_a_config_file():
    assert savings_text(CHECKPOINTING | {"optimizer.kind": "adamw-8bit"}) == (
        "would fit with: model.gradient_checkpointing = true, optimizer.kind = 'adamw-8bit'"
    )


def test_ranks_share_what_is_sharded(larger):
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    reference = replace(larger, algorithm=AlgorithmConfig(kl_coef=0.1))
    one, two = (make_plan(reference, num_ranks=n, **machine) for n in (1, 2))
    assert two.training.weights == one.training.masters / 2 and two.training.optimizer == one.training.optimizer / 2
    assert two.second_models == two.training.weights and one.second_models == one.training.weights
    assert two.sampler_weights == 0
    assert "on each of 2 ranks:" in plan_text(two) and "unsharded blocks and root" in plan_text(two)
    with pytest.raises(ValueError, match=r"2 ranks: .* must be 'auto' or 'gather', not 'alias'"):
        make_plan(replace(larger, sampler=replace(larger.sampler, weights="alias")), num_ranks=2, **machine)


def test_reducing_every_micro_batch_is_what_ranks_save_first(larger):
    machine = {"device_type": "cuda", "prompt_tokens": 64, "num_ranks": 2}
    once, every = (
        make_plan(with_settings(larger, {"optimizer.reduce_every": e}), memory_gib=4.0, **machine)
        for e in ("auto", "micro-batch")
    )
    assert once.has_whole_gradients and not every.has_whole_gradients
    assert once.peak - every.peak == once.training.gradients - every.training.gradients > 1e5
    assert "while training, of the whole model" in plan_text(once)
    wanted = with_settings(larger, {"optimizer.reduce_every": "update"})
    assert fitting_settings(wanted, memory_gib=(every.peak + 1e5) / GIB, **machine) == EARLY


def test_float32_weights_are_not_planned_for_a_kind_that_rounds(larger):
    eight = replace(larger, optimizer=OptimizerConfig(kind="adamw-8bit"))
    with pytest.raises(ValueError, match=r"'adamw-8bit' rounds bfloat16 weights"):
        make_plan(eight, device_type="cpu", memory_gib=1.0, prompt_tokens=64)


def test_offload_keeps_nothing_of_training_on_the_device():
    layer, masters = torch.nn.Linear(10, 7).bfloat16(), OptimizerConfig()
    assert training_bytes(layer, masters) == 77 * (4 + 4 + 8) and training_bytes(layer, masters, 2) == 77 * 8
    assert training_bytes(layer, replace(masters, offload=True)) == 0
    once = replace(masters, reduce_every="update")  # gradients of the whole layer
    assert training_bytes(layer, once, 2) == 77 * (4 + (4 + 8) // 2) and training_bytes(layer, once) == 77 * 16
    assert training_bytes(layer, replace(once, offload=True), 2) == 77 * 4


def test_the_first_rank_also_stages_the_export(larger):
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    one, two = (make_plan(larger, num_ranks=n, **machine) for n in (1, 2))
    whole = one.training.weights
    assert two.checkpoint == whole + two.training.weights + two.training.optimizer  # float32 shards are the masters
    assert two.unsharded == whole and one.unsharded == 0
    on_cpu = [make_plan(larger, num_ranks=n, **machine | {"device_type": "cpu"}) for n in (1, 2)]
    assert [plan.checkpoint - plan.training.optimizer for plan in on_cpu] == [2 * whole, 4 * whole - whole]


def with_adapters(config: TrainConfig, rank: int, **settings: object) -> TrainConfig:
    return replace(
        config, model=replace(config.model, lora_rank=rank, lora_targets=("q_proj", "down_proj")), **settings
    )


def test_adapters_by_hand(larger):
    """Each block with A and B on a projection of 384 → 384 and one of 1024 → 384."""
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    full = make_plan(larger, **machine)
    ours = make_plan(with_adapters(larger, 4, algorithm=AlgorithmConfig(kl_coef=0.1)), **machine)
    count = NUM_BLOCKS * 4 * (384 + 384 + 1024 + 384)
    assert ours.training.weights == full.training.weights + 2 * count
    t = ours.training
    assert (t.gradients, t.masters, t.optimizer) == (4 * count, 4 * count, 8 * count)
    assert t.logits == full.training.logits  # no gradient of the head there, one in its `.grad` here
    assert ours.second_models == ours.sampler_weights == ours.unsharded == 0
    assert ours.checkpoint == (2 + 4 + 8) * count
    with pytest.raises(ValueError, match=r"model\.lora_targets: 'q_prj' is no linear layer"):
        make_plan(replace(larger, model=replace(larger.model, lora_rank=4, lora_targets=("q_prj",))), **machine)


@pytest.mark.vllm
def test_vllms_buffers_for_adapters(larger):
    """Of the next rank that vLLM knows, 8."""
    config = with_adapters(larger, 4, sampler=replace(larger.sampler, kind="vllm"))
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    assert make_plan(config, **machine).sampler_weights == 2 * NUM_BLOCKS * 8 * (384 + 384 + 1024 + 384)
    with pytest.raises(ValueError, match=r"model\.lora_rank = 513: vLLM serves ranks up to 512"):
        make_plan(with_adapters(config, 513), **machine)


def test_offload_needs_the_gpu_for_blocks_only(larger):
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    reference = replace(larger, algorithm=AlgorithmConfig(kl_coef=0.1))
    plain = make_plan(reference, **machine)
    ours = make_plan(replace(reference, optimizer=OptimizerConfig(offload=True)), **machine)
    t, count = ours.training, plain.training.weights // 2
    assert (t.weights, t.gradients, t.masters, t.optimizer) == (4 * count, 4 * count, 0, 8 * count)
    assert ours.second_models == 4 * count and ours.resident == ours.static == 0
    assert t.gathered > 0 and ours.unsharded == 2 * count
    moving = max(t.computing, t.update, ours.unsharded + ours.kv_cache + ours.sampler_logits)
    assert ours.peak == moving + GIB < plain.peak  # beside what CUDA itself takes
    assert plan_text(ours).count("of CPU memory, not counted below") == 5
    with pytest.raises(ValueError, match=r"optimizer\.offload = true: .* not 'adamw-8bit'"):
        make_plan(replace(larger, optimizer=OptimizerConfig(kind="adamw-8bit", offload=True)), **machine)


def test_savings_of_an_offloaded_run_keep_its_masters(larger):
    offloaded = replace(larger, optimizer=OptimizerConfig(offload=True))
    assert fitting_settings(offloaded, memory_gib=0.001, device_type="cuda", prompt_tokens=64) == {}


@pytest.mark.vllm
@pytest.mark.parametrize("weights", ["alias", "copy"])
def test_the_kv_cache_is_cut_as_the_run_cuts_it(larger, weights, monkeypatch):
    """Beside what training keeps and the copy that vLLM serves, if any."""
    sampler = replace(larger.sampler, kind="vllm", weights=weights, batch_size=4096)
    config = replace(larger, sampler=sampler)
    plan = make_plan(config, device_type="cuda", memory_gib=4.0, prompt_tokens=64)
    whole = plan.training.weights
    assert plan.reserve == 3 * GIB  # CUDA and the engine
    assert plan.kv_cache == (GIB - plan.training.static - (whole if weights == "copy" else 0)) // 2
    policy = Policy(AutoModelForCausalLM.from_config(Pretrained(config.model).architecture, dtype=torch.bfloat16))
    policy.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GIB - whole, 4 * GIB))
    assert plan.kv_cache == kv_cache_bytes(policy, sampler, 256, training_bytes(policy, config.optimizer))


@pytest.mark.vllm
def test_a_narrower_kv_cache_is_counted_as_such(larger):
    sampler = replace(larger.sampler, kind="vllm", batch_size=8)
    plans = [make_plan(replace(larger, sampler=replace(sampler, kv_cache_dtype=d)), **CUDA) for d in ("auto", "fp8")]
    assert plans[0].kv_cache == 2 * plans[1].kv_cache > 0 and plans[0].peak > plans[1].peak
    assert plans[0].shape.kv_bytes == 2 * plans[1].shape.kv_bytes > 0


@pytest.mark.vllm
@pytest.mark.parametrize(("asked", "planned"), [(0, 3), (2, 2), (8, 3)])
def test_as_many_sequences_are_sampled_at_once_as_the_cache_holds(larger, asked, planned):
    """256 tokens take four blocks of 128; here three times that fits, and a block more."""
    one = make_plan(replace(larger, sampler=replace(larger.sampler, kind="vllm", batch_size=1)), **CUDA).kv_cache
    sampler = replace(larger.sampler, kind="vllm", batch_size=asked, kv_cache_bytes=3 * one + one // 4)
    plan = make_plan(replace(larger, sampler=sampler), **CUDA)
    assert plan.work.config.sampler.batch_size == planned
    assert "generate" in expected_seconds(plan.work, plan.shape, named_card("H100"))


@pytest.mark.vllm
def test_every_rank_serves_a_copy(larger):
    machine = {"device_type": "cuda", "memory_gib": 4.0, "prompt_tokens": 64}
    config = replace(larger, sampler=replace(larger.sampler, kind="vllm"))
    one, two = (make_plan(config, num_ranks=n, **machine) for n in (1, 2))
    assert (one.sampler_weights, two.sampler_weights) == (0, one.training.weights)


def test_the_page_shows_the_table_that_the_script_wrote():
    root = Path(__file__).resolve().parent.parent
    rows = [r for r in (root / "bench/results/plan_7b.md").read_text().splitlines() if r.startswith("|")]
    assert len(rows) == 2 + len(plan_table.ROWS) and "\n".join(rows) in (root / "docs/memory.md").read_text()


@pytest.mark.vllm
@pytest.mark.slow
def test_the_table_is_what_the_script_writes():
    path = Path(__file__).resolve().parent.parent / "bench/results/plan_7b.md"
    assert path.read_text() == plan_table.report()


def test_the_command_prints_parts_paths_and_verdict(config, capsys):
    arguments = [
        "--model.path",
        config.model.path,
        "--sampler.max-new-tokens",
        "16",
        "--batch.micro-batch-tokens",
        "64",
        "--task.num-train",
        "10",
    ]
    assert main(["plan", *arguments, "--memory-gib", "2"]) == 0
    out = capsys.readouterr().out
    assert "of 2.000 GiB: fits" in out and "attention: sdpa, packed" in out and "kernel: native" in out
    assert main(["plan", *arguments, "--memory-gib", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out and "no saving that is tried makes it fit" in out
    assert main(["plan", *arguments, "--prompt-tokens", "60"]) == 2
    assert "make 76 tokens, more than batch.micro_batch_tokens=64" in capsys.readouterr().err
