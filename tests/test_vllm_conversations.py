"""Conversations through vLLM: the row that one forward scores, equal whatever the batch, read from the cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_conversations import ECHO, LIMITS, PROBLEMS, SETTINGS, pieces

from fastrl.config.schema import ModelConfig, ScratchConfig, TaskConfig
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.scoring import score
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.shared import AliasedWeights
from fastrl.tasks import Task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verify import make_pool

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    (folder / "echo.py").write_text(ECHO)
    config = ScratchConfig(characters="abce?.+-!:", hidden_size=64, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = Pretrained(ModelConfig(path=str(folder), device="cpu"))
    model = load_model(source)
    engine = Engine(EngineSettings(str(folder), torch.float32, 500, 32, 16 << 20))
    sampler = VllmSampler(engine, AliasedWeights(engine, model), stop_token_ids=[1])
    sampler.publish(0)
    task = Task("echo", PROBLEMS, [], [], None, "none", limits=LIMITS)
    with make_pool(CustomReward("echo:Echo", str(folder)), TaskConfig(num_workers=1)) as pool:
        yield Arena(task, source.tokenizer, sampler, pool, Policy(model), Correctness(truncated="judged"))
    engine.close()


def test_a_conversation_is_the_row_that_one_forward_scores(arena):
    drawn = arena.draw(PROBLEMS, SETTINGS, [5, 6, 7])
    assert drawn.num_turns_R.max() == 3 and (drawn.turns_N < 0).any()
    scored_N, _ = score(arena.policy, drawn, 400)
    np.testing.assert_allclose(drawn.own(scored_N), drawn.own(drawn.sampler_logprobs_N), atol=1e-4)
    for index in range(len(drawn)):
        parts = pieces(drawn, index, arena.tokenizer)
        own = [text for turn, text in parts if turn > 0]
        assert all(text.endswith(("?", "<eos>")) for text in own[:-1]), own
        assert [text for turn, text in parts if turn < 0] == [
            "+-!"[drawn.groups_R[index]] * k for k in range(1, len(own))
        ]
    alone = arena.draw(PROBLEMS[:1], SETTINGS, [5])
    np.testing.assert_array_equal(alone.tokens_T, drawn.take(drawn.groups_R == 0).tokens_T)


def test_a_turn_reads_what_the_last_ones_left_in_the_cache(arena):
    """Prompts of 300 tokens, blocks of 128: two whole blocks come from the cache, and a new draw begins without."""
    problems = [replace(p, prompt=("abc"[i] + "eab" * 100)[:300]) for i, p in enumerate(PROBLEMS)]
    seen, stream = [], arena.sampler.engine.stream
    arena.sampler.engine.stream = lambda *a: iter(seen.append([c for _, c in stream(*a)]) or enumerate(seen[-1]))
    for _ in range(2):
        seen.clear()
        arena.draw(problems, replace(SETTINGS, num_samples=1), [2, 3, 4])
        assert [c.num_cached_tokens for c in seen[0]] == [0, 0, 0]
        assert len(seen) > 1 and {c.num_cached_tokens for part in seen[1:] for c in part} == {256}
    arena.sampler.engine.stream = stream


def test_weights_that_were_published_in_between_empty_the_cache(arena):
    prompt, settings = [5] * 300, SamplingSettings(num_samples=1, max_new_tokens=2, goes_on=True)
    resets, reset = [], arena.sampler.engine.reset_prefix_cache
    arena.sampler.engine.reset_prefix_cache = lambda: resets.append(1) or reset()
    for version, expected in ((0, 0), (0, 0), (1, 1), (1, 1)):
        arena.sampler.publish(version)
        sample(arena.sampler, [prompt], settings, [0])
        assert len(resets) == expected
    sample(arena.sampler, [prompt], replace(settings, goes_on=False), [0])
    assert len(resets) == 2
    arena.sampler.engine.reset_prefix_cache = reset
