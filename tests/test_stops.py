"""Stop texts and stop tokens: completions are those of an unstopped draw up to the first stop, in both samplers."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrl.config.schema import ModelConfig, SamplerConfig, ScratchConfig
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.scoring import score
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.prompts.stops import Stops, chosen_stops
from fastrl.prompts.tokens import completion_texts
from fastrl.rollouts import Rollouts
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplingSettings, sample

CHARACTERS = "abce?.+-!: "
PROMPTS, SEEDS = [[3, 4], [5, 6, 7, 3], [4]], [1, 2, 3]
SETTINGS = SamplingSettings(num_samples=40, max_new_tokens=24)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random model whose heads have a size that vLLM serves on CPU."""
    folder = tmp_path_factory.mktemp("stops")
    config = ScratchConfig(characters=CHARACTERS, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Pretrained(ModelConfig(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def model(source):
    return load_model(source)


def embedded(model) -> EmbeddedSampler:
    return EmbeddedSampler(model, stop_token_ids=[1], pad_token_id=0, batch_size=64)


def stops_of(source, *texts, ids=()) -> Stops:
    return Stops.of(source.tokenizer, ids, texts)


def ids_of(source, text) -> list[int]:
    return source.tokenizer(text, add_special_tokens=False).input_ids


def test_the_first_end_is_found_wherever_it_begins(source):
    stops = stops_of(source, "ab.", "!", ids=[1])
    assert stops.length(ids_of(source, "a.ab.c")) == 5
    assert stops.length(ids_of(source, "a.b.ab")) is None
    assert stops.length([*ids_of(source, "a."), 1, *ids_of(source, "ab.")]) == 3
    assert stops.is_end(ids_of(source, "cc!")) and not stops.is_end(ids_of(source, "!c"))
    assert Stops(frozenset([7])).length([5, 7, 7]) == 2


def test_a_long_completion_is_looked_through_once(source):
    """Only where an end could be: 32768 tokens took 3 s when each prefix was looked at."""
    stops, ids = stops_of(source, "ab.", ids=[1]), ids_of(source, "ccce" * 8192)
    start = time.perf_counter()
    assert stops.length(ids) is None and stops.length([*ids, *ids_of(source, ".ab.")]) == len(ids) + 4
    assert time.perf_counter() - start < 0.5


def test_stops_that_end_nothing_are_errors():
    tokenizer = scratch_tokenizer(ScratchConfig(characters=CHARACTERS))
    for stop, message in [("#", "'#' ends nothing: no token"), ("", "ASCII"), ("é", "ASCII"), ("a ", "space")]:
        with pytest.raises(ValueError, match=message):
            chosen_stops(SamplerConfig(stop=(stop,)), tokenizer)
    with pytest.raises(ValueError, match=r"sampler\.stop_token_ids holds 99; the tokenizer has tokens 0 to 13"):
        chosen_stops(SamplerConfig(stop_token_ids=(99,)), tokenizer)


def check_stopped(drawn: Rollouts, stops: Stops, source) -> set[str]:
    """Each ends at its first stop, or is cut at the limit without one; the ways in which they end."""
    ways = set()
    all_stops = replace(stops, end_ids=stops.end_ids | {1})
    for i in range(len(drawn)):
        ids, is_cut = drawn.completion(i).tolist(), bool(drawn.is_truncated_R[i])
        assert all_stops.length(ids) == (None if is_cut else len(ids))
        assert not is_cut or len(ids) == SETTINGS.max_new_tokens
        ways.add("cut" if is_cut else "eos" if ids[-1] == 1 else source.tokenizer.decode(ids)[-2:])
    return ways


def test_the_embedded_sampler_draws_the_same_up_to_the_stop(source, model):
    free = sample(embedded(model), PROMPTS, SETTINGS, SEEDS)
    for stops in (stops_of(source, "e.", "+-"), stops_of(source, "!", ids=[5]), stops_of(source, ids=[5])):
        drawn = sample(embedded(model), PROMPTS, replace(SETTINGS, stops=stops), SEEDS)
        ways = check_stopped(drawn, stops, source)
        assert len(ways) > 1
        for i in range(len(drawn)):
            n = drawn.completion_lengths_R[i]
            assert drawn.completion(i).tolist() == free.completion(i)[:n].tolist()
            np.testing.assert_allclose(
                drawn.of_rollout(i, drawn.sampler_logprobs_N),
                free.of_rollout(i, free.sampler_logprobs_N)[:n],
                atol=1e-5,
            )


def test_a_stop_text_is_judged_and_a_stop_token_is_not(source):
    """`ab.` ended by a text, `abc` by the token of c, `ab` by the end of the sequence, `ab` cut."""
    rows = [ids_of(source, "ab."), ids_of(source, "abc"), [*ids_of(source, "ab"), 1], ids_of(source, "ab")]
    rollouts = Rollouts.of([[3]] * 4, rows, is_truncated=[False, False, False, True])
    (c,) = ids_of(source, "c")
    assert completion_texts(source.tokenizer, rollouts, {1, c}) == ["ab.", "ab", "ab", "ab"]
    assert completion_texts(source.tokenizer, rollouts) == ["ab", "ab", "ab", "ab"]


@pytest.mark.vllm
def test_vllm_ends_where_the_embedded_sampler_would(source, model):
    """What only looks like an end goes on: with the log-probs of one forward, the same whatever else is drawn, and
    ends as often as with the embedded sampler."""
    from fastrl.sampling.vllm_engine import Engine, EngineSettings
    from fastrl.sampling.vllm_sampler import VllmSampler
    from fastrl.sampling.weights.shared import AliasedWeights

    engine = Engine(EngineSettings(model.name_or_path, torch.float32, 64, 64, 16 << 20))
    try:
        sampler = VllmSampler(engine, AliasedWeights(engine, model), stop_token_ids=[1])
        sampler.publish(0)
        stops = stops_of(source, "e.", "+-", ids=[5])
        settings = replace(SETTINGS, stops=stops, num_samples=200)
        drawn = sample(sampler, PROMPTS, settings, SEEDS)
        ours = sample(embedded(model), PROMPTS, settings, SEEDS)
        alone = sample(sampler, PROMPTS[:1], settings, SEEDS[:1])
    finally:
        engine.close()
    assert check_stopped(drawn, stops, source) == check_stopped(ours, stops, source) >= {"e.", "+-"}
    scored_N, _ = score(Policy(model), drawn, 4000)
    np.testing.assert_allclose(scored_N, drawn.sampler_logprobs_N, atol=1e-4)
    np.testing.assert_array_equal(alone.tokens_T, drawn.take(drawn.groups_R == 0).tokens_T)
    by_text = [sum(stops.has_text(b.completion(i).tolist()) for i in range(len(b))) for b in (drawn, ours)]
    assert np.isin(drawn.completions_N, list(stops.text_ids)).sum() > 2 * by_text[0], "nothing only looked like an end"
    assert abs(by_text[0] - by_text[1]) < 0.1 * len(drawn) < 2 * by_text[1]  # 600 draws each: a standard error of 12
