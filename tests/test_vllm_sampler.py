"""The vLLM sampler: the protocol's promises, the empty cache of every call, and input that it cannot serve."""

from dataclasses import replace

import pytest
import torch
from rollout_cases import drawn
from transformers import AutoModelForCausalLM

from fastrl.config.schema import SamplerConfig
from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.sampling import kv_budget, vllm_sampler
from fastrl.sampling.choose import build_sampler, choose_sampler
from fastrl.sampling.prefix_cache import check_cache_reads, longest_shared_prefixes
from fastrl.sampling.probe import LogprobProbe, measure
from fastrl.sampling.protocol import SamplerError, SamplerParts, SamplingSettings, StaleWeightsError, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.shared import AliasedWeights, CopiedWeights


class Stops:
    """The two attributes of a tokenizer that building a sampler asks for."""

    eos_token_id, pad_token_id = 1, 0


@pytest.fixture(scope="module")
def sampler(family_folder):
    folder = str(family_folder("qwen3"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    engine = Engine(EngineSettings(folder, torch.float32, 640, 16, 16 << 20))
    yield VllmSampler(engine, AliasedWeights(engine, model), stop_token_ids=[1])
    engine.close()


def long_prompt(first: int, num_tokens: int) -> list[int]:
    return [first] + [10 + (7 * i + first) % 500 for i in range(num_tokens - 1)]


@pytest.mark.vllm
def test_samples_come_in_prompt_order_and_all_differ(sampler):
    settings = SamplingSettings(num_samples=5, max_new_tokens=10)
    prompts = [[5, 6, 7], [5, 6, 7], [9] * 20]
    rollouts = drawn(sampler, prompts, settings, [1, 2, 3])
    assert [r.group for r in rollouts] == [0] * 5 + [1] * 5 + [2] * 5
    assert [r.prompt_ids for r in rollouts] == [prompts[r.group] for r in rollouts]
    assert len({tuple(r.completion_ids) for r in rollouts}) == 15  # adjacent seeds do not overlap between prompts
    again = drawn(sampler, [prompts[2]], settings, [3])
    assert [r.completion_ids for r in again] == [r.completion_ids for r in rollouts[10:]]
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        drawn(sampler, prompts[:2], settings, [0])
    with pytest.raises(ValueError, match="630 tokens and 12 new ones exceed the 640 tokens"):
        drawn(sampler, [[5] * 630], SamplingSettings(1, 12), [0])


@pytest.mark.vllm
def test_finished_prompts_come_while_others_are_sampled(sampler, monkeypatch):
    """In parts the same completions as in one; a part that nobody waits for leaves the engine empty."""
    settings, seeds = SamplingSettings(num_samples=4, max_new_tokens=12), list(range(8))
    prompts = [[5 + i, 6] for i in range(8)]
    whole = drawn(sampler, prompts, settings, seeds)
    monkeypatch.setattr(vllm_sampler, "PART", 4)
    parts = list(sampler.generate(prompts, settings, seeds))
    assert len(parts) > 1 and sum(map(len, parts)) == 32
    assert all(part.groups_R.tolist() == [g for g in part.groups_R[::4] for _ in range(4)] for part in parts)
    assert drawn(sampler, prompts, settings, seeds) == whole
    abandoned = sampler.generate(prompts, settings, seeds)
    next(abandoned)
    abandoned.close()
    assert drawn(sampler, prompts, settings, seeds) == whole


@pytest.mark.vllm
def test_samples_share_a_prompt_within_a_call_and_nothing_between_calls(sampler):
    prompt, settings = long_prompt(11, 300), SamplingSettings(num_samples=3, max_new_tokens=4)
    seen = []
    stream = sampler.engine.stream
    for _ in range(2):
        sampler.engine.stream = lambda *a: iter(seen.append(list(stream(*a))) or seen[-1])
        drawn(sampler, [prompt], settings, [1])
    sampler.engine.stream = stream
    for completions in seen:
        cached = sorted(c.num_cached_tokens for _, c in completions)
        assert cached[0] == 0 and cached[-1] == 2 * sampler.engine.block_size


@pytest.mark.vllm
def test_keys_of_older_weights_in_the_cache_are_noticed(sampler, monkeypatch):
    """Prompts longer than two KV blocks, sampled again after an update with a cache that was not reset."""
    prompt, settings = long_prompt(12, 300), SamplingSettings(num_samples=2, max_new_tokens=4)
    drawn(sampler, [prompt], settings, [1])
    with monkeypatch.context() as patch:
        patch.setattr(sampler.engine, "reset_prefix_cache", lambda: True)  # says it did, and did not
        from fastrl.sampling.vllm_engine import Request

        request = Request(prompt, 1)
        assert sampler.engine.generate([request], settings, [1])[0].num_cached_tokens == 2 * sampler.engine.block_size
        with pytest.raises(
            StaleWeightsError, match=r"300 tokens read 256 .* only 0 with the others.*reset_prefix_cache"
        ):
            drawn(sampler, [prompt], settings, [1])
        patch.setattr(sampler.engine, "reset_prefix_cache", lambda: False)
        with pytest.raises(SamplerError, match="did not reset its prefix cache"):
            drawn(sampler, [prompt], settings, [1])
    drawn(sampler, [prompt], settings, [1])


@pytest.mark.vllm
def test_a_dying_engine_is_a_sampler_error_with_its_cause(sampler, monkeypatch):
    def die(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(sampler.engine._llm.llm_engine.engine_core, "get_output", die)
    with pytest.raises(SamplerError, match="failed to generate: RuntimeError: CUDA error"):
        drawn(sampler, [[5, 6]], SamplingSettings(1, 4), [1])


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_sequence_tokens": 5000}, "5000"),
        ({"kv_cache_bytes": 1000}, "sampler.kv_cache_bytes = 1000"),
        ({"path": "broken"}, "cannot serve"),
    ],
)
def test_what_cannot_be_served_is_one_value_error(family_folder, tmp_path, settings, message):
    if "path" in settings:
        (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["NoSuchModel"]}')
        settings = {"path": str(tmp_path)}
    known = {"path": str(family_folder("qwen3")), "dtype": torch.float32, "max_sequence_tokens": 640}
    with pytest.raises(ValueError, match=message) as caught:
        Engine(EngineSettings(**known | {"max_num_sequences": 16, "kv_cache_bytes": 16 << 20} | settings))
    assert "\n" not in str(caught.value) and "sampler.kind = 'embedded'" in str(caught.value)


@pytest.mark.vllm
def test_interpreted_triton_is_refused(family_folder, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET"):
        Engine(EngineSettings(str(family_folder("qwen3")), torch.float32, 640, 16, 16 << 20))


def test_the_chooser_says_why(monkeypatch):
    assert choose_sampler(SamplerConfig(kind="embedded"), torch.device("cuda"))[0] == "embedded"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_sampler(SamplerConfig(), torch.device("cuda")) == ("embedded", "vLLM is not installed")
    for kind in ("auto", "vllm"):  # a plan for another machine
        assert choose_sampler(SamplerConfig(kind=kind), torch.device("cuda"), is_here=False)[0] == "vllm"
    with pytest.raises(ValueError, match="vLLM is not installed: pip install"):
        choose_sampler(SamplerConfig(kind="vllm"), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose_sampler(SamplerConfig(), torch.device("cuda"))[0] == "vllm"
    kind, reason = choose_sampler(SamplerConfig(), torch.device("cpu"))
    assert kind == "embedded" and "no CUDA device" in reason


@pytest.mark.vllm
def test_a_kv_cache_on_the_cpu_stays():
    with pytest.raises(ValueError, match=r"sampler.release_kv_cache = true needs vLLM on a CUDA device"):
        choose_sampler(SamplerConfig(kind="vllm", release_kv_cache=True), torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "cpu", r"'fp8' needs the vllm sampler; the embedded one"),
        ({"kv_cache_dtype": "fp8", "kind": "vllm"}, "cpu", r"'fp8' needs AVX-512 on a CPU"),
        ({"kv_cache_dtype": "fp8", "kind": "vllm"}, "cuda", r"8\.9 or more\), an old card does not"),
        ({"batch_size": 0}, "cpu", r"sampler.batch_size = 0 .* needs the vllm sampler: give a number"),
    ],
)
def test_what_sampler_or_device_cannot_honour_is_refused_first(monkeypatch, settings, device, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old card")
    with pytest.raises(ValueError, match=message):
        choose_sampler(SamplerConfig(**settings), torch.device(device))


def test_as_many_sequences_as_the_cache_holds(family_folder, monkeypatch):
    """64 tokens are 3 blocks of 128 tokens, of 2 layers × (K, V) × 2 heads × 32 numbers: 393,216 bytes in float32."""
    policy = Policy(AutoModelForCausalLM.from_pretrained(family_folder("qwen3")))
    monkeypatch.setattr(kv_budget, "device_memory", lambda device: (8 * 10_000_000, 8 * 10_000_000))
    for dtype, one, num in (("auto", 393_216, 25), ("fp8", 98_304, 101)):
        config = SamplerConfig(kind="vllm", batch_size=0, kv_cache_dtype=dtype)
        assert kv_budget.kv_cache_bytes(policy, config, 64) == 10_000_000
        assert kv_budget.num_sequences(policy, config, 64, 10_000_000) == num == 10_000_000 // one
        assert kv_budget.num_sequences(policy, config, 64, 1 << 40) == kv_budget.MOST_SEQUENCES
        given = SamplerConfig(kind="vllm", batch_size=3, kv_cache_dtype=dtype)
        assert kv_budget.kv_cache_bytes(policy, given, 64) == 3 * one
        assert kv_budget.num_sequences(policy, given, 64, 10_000_000) == 3


@pytest.fixture(scope="module")
def narrow(family_folder):
    """As `sampler`, with an fp8 KV cache, on weights of its own."""
    if not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM's fp8 KV cache needs AVX-512 on a CPU")
    folder = str(family_folder("qwen3"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    engine = Engine(EngineSettings(folder, torch.float32, 640, 16, 16 << 20, "fp8"))
    yield VllmSampler(engine, CopiedWeights(engine, model, print), stop_token_ids=[])
    engine.close()


@pytest.mark.vllm
def test_an_fp8_cache_is_noise_that_a_stale_sampler_exceeds(narrow):
    """The probe calibrates to it and lets the next step pass, but no policy whose update was not published."""
    model = narrow.weights.model
    policy, probe = Policy(model), LogprobProbe(torch.float8_e4m3fn)

    def scored(seed: int):
        found = sample(narrow, [[5 + i, 6, 7] for i in range(8)], SamplingSettings(8, 48), range(seed, seed + 8))
        return replace(found, policy_logprobs_N=score(policy, found, 4096)[0])

    assert not narrow.shares_weights  # old log-probs are the trainer's own
    assert probe.check(scored(0)) == "" and 1e-3 < probe.calibration.mean < 0.2
    assert probe.check(scored(100)) == ""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.006 * torch.randn(parameter.shape, generator=generator)
    stale = scored(200)
    assert measure(stale).mean < 5 * probe.calibration.mean
    with pytest.raises(StaleWeightsError, match="does not run the current weights"):
        probe.check(stale)


@pytest.mark.vllm
def test_a_sequence_that_fits_no_memory_is_an_error_before_the_engine(family_folder):
    model = AutoModelForCausalLM.from_pretrained(family_folder("qwen3"))
    with pytest.raises(ValueError, match=r"one sequence of 1000000000 tokens needs \d+ bytes of KV cache"):
        build_sampler(SamplerParts(SamplerConfig(kind="vllm"), Policy(model), Stops(), 10**9, say=lambda text: None))


def test_an_unknown_sampler_is_refused_with_the_nearest_known():
    with pytest.raises(ValueError, match=r"sampler.kind = 'vlm' is unknown, did you mean 'vllm'\?"):
        choose_sampler(SamplerConfig(kind="vlm"), torch.device("cpu"))


def test_shared_prefixes_bound_what_the_cache_may_give():
    prompts = [[1, 2, 3], [1, 2, 4], [9], [1, 2, 3], [5, 6]]
    assert longest_shared_prefixes(prompts) == [3, 2, 0, 3, 0]
    check_cache_reads(prompts, [[3, 3], [2, 3], [0], [3, 3], [0, 2]])
    with pytest.raises(StaleWeightsError, match="a prompt of 2 tokens read 1 "):
        check_cache_reads(prompts, [[3, 3], [2, 3], [0], [3, 3], [1, 2]])
