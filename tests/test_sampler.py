"""The embedded sampler: parity with the trainer's log-probs, the right distribution, independence of the batch."""

import pytest
import torch
from rollout_cases import drawn, scores_of
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList

from fastrl.policy.model import Policy
from fastrl.sampling import embedded
from fastrl.sampling.embedded import EmbeddedSampler, InverseCdfDraw
from fastrl.sampling.growing_cache import growing_cache
from fastrl.sampling.protocol import SamplingSettings

STOPS = [3, 4, 5, 6, 7, 8, 9, 10]


def sampler(model, batch_size=64, stops=STOPS) -> EmbeddedSampler:
    return EmbeddedSampler(model, stop_token_ids=stops, pad_token_id=0, batch_size=batch_size)


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, 1200, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("model_name", ["tiny_model", "sliding_model"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree_on_log_probs(model_name, temperature, request):
    model = request.getfixturevalue(model_name)
    settings = SamplingSettings(num_samples=6, max_new_tokens=24, temperature=temperature)
    rollouts = drawn(sampler(model), prompts_of([1, 4, 12, 20]), settings, [0, 1, 2, 3])
    scores = scores_of(Policy(model, temperature=temperature), rollouts, 500)
    for rollout, (logprobs, _) in zip(rollouts, scores, strict=True):
        assert rollout.sampler_logprobs == pytest.approx(logprobs, abs=2e-5)


def test_completions_end_with_their_first_stop_token(tiny_model):
    settings = SamplingSettings(num_samples=8, max_new_tokens=40)
    for rollout in drawn(sampler(tiny_model, stops=list(range(200))), prompts_of([3, 5]), settings, [1, 2]):
        stops = [t for t in rollout.completion_ids if t < 200]
        if rollout.finish_reason == "stop":
            assert stops == [rollout.completion_ids[-1]]
        else:
            assert not stops and len(rollout.completion_ids) == 40
        assert len(rollout.sampler_logprobs) == len(rollout.completion_ids) == len(rollout.loss_mask)


def test_tokens_do_not_depend_on_the_batch(tiny_model):
    prompts, settings = prompts_of([2, 9, 5]), SamplingSettings(num_samples=5, max_new_tokens=16)
    large = drawn(sampler(tiny_model, 64), prompts, settings, [7, 8, 9])
    small = drawn(sampler(tiny_model, 4), prompts, settings, [7, 8, 9])
    alone = drawn(sampler(tiny_model, 64), prompts[2:], settings, [9])
    assert [r.completion_ids for r in large] == [r.completion_ids for r in small]
    assert [r.completion_ids for r in large[10:]] == [r.completion_ids for r in alone]
    assert [r.group for r in large] == [0] * 5 + [1] * 5 + [2] * 5


def test_equal_prompts_with_other_seeds_and_samples_differ(tiny_model):
    prompt = prompts_of([6])[0]
    settings = SamplingSettings(num_samples=4, max_new_tokens=12)
    rollouts = drawn(sampler(tiny_model), [prompt, prompt], settings, [1, 2])
    assert len({tuple(r.completion_ids) for r in rollouts}) == 8


def test_draws_follow_the_distribution(tiny_model):
    """Frequencies of the first token over 4000 draws against its probabilities (chi-square over the likely tokens)."""
    prompt = prompts_of([6])[0]
    settings = SamplingSettings(num_samples=4000, max_new_tokens=1, temperature=0.8)
    rollouts = drawn(sampler(tiny_model, 2000), [prompt], settings, [0])
    with torch.no_grad():
        probs = torch.softmax(tiny_model(torch.tensor([prompt])).logits[0, -1] / 0.8, -1)
    counts = torch.bincount(torch.tensor([r.completion_ids[0] for r in rollouts]), minlength=1500).float()
    likely = probs * 4000 > 10
    expected = torch.cat([probs[likely], probs[~likely].sum()[None]]) * 4000
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert freedom > 5
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_top_k_top_p_and_greedy_shape_evaluation(tiny_model):
    prompt = prompts_of([6])[0]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([prompt])).logits[0, -1]
    best = logits.topk(2).indices.tolist()
    top_2 = SamplingSettings(num_samples=200, max_new_tokens=1, top_k=2)
    rollouts = drawn(sampler(tiny_model, 200), [prompt], top_2, [0])
    assert {r.completion_ids[0] for r in rollouts} == set(best)
    expected = torch.log_softmax(logits[best], 0)
    first = next(r for r in rollouts if r.completion_ids[0] == best[0])
    assert first.sampler_logprobs[0] == pytest.approx(expected[0].item(), abs=1e-5)
    greedy = SamplingSettings(num_samples=3, max_new_tokens=4, temperature=0.0)
    rollouts = drawn(sampler(tiny_model), [prompt], greedy, [0])
    assert {r.completion_ids[0] for r in rollouts} == {best[0]} and len(
        {tuple(r.completion_ids) for r in rollouts}
    ) == 1


def test_the_models_own_generation_config_is_ignored(tiny_model):
    prompt, settings = prompts_of([6])[0], SamplingSettings(num_samples=20, max_new_tokens=8)
    plain = drawn(sampler(tiny_model), [prompt], settings, [0])
    tiny_model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=3.0, eos_token_id=1
    )
    assert [r.completion_ids for r in drawn(sampler(tiny_model), [prompt], settings, [0])] == [
        r.completion_ids for r in plain
    ]


def test_one_seed_per_prompt(tiny_model):
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        drawn(sampler(tiny_model), [[1], [2]], SamplingSettings(1, 1), [0])


def test_drawing_in_chunks_changes_no_bit():
    """V = 40 001: 13 rows at a time on CPU. One row after the other gives the same tokens and log-probs."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(30, 40_001, generator=generator)
    ids, uniforms = torch.zeros(30, 4, dtype=torch.long), torch.rand(1, 30, dtype=torch.float64, generator=generator)
    together = InverseCdfDraw(uniforms, 0.7, LogitsProcessorList())
    one_hot = together(ids, scores.clone())
    assert one_hot.isfinite().sum(dim=1).tolist() == [1] * 30
    for row in range(30):
        alone = InverseCdfDraw(uniforms[:, row : row + 1], 0.7, LogitsProcessorList())
        assert alone(ids[row : row + 1], scores[row : row + 1].clone()).equal(one_hot[row : row + 1])
        assert alone.logprobs[0].equal(together.logprobs[0][row : row + 1])
    expected = torch.log_softmax(scores / 0.7, -1).gather(1, one_hot.argmax(1, keepdim=True)).squeeze(1)
    assert together.logprobs[0].equal(expected)


@pytest.mark.parametrize("model_name", ["tiny_model", "sliding_model"])
def test_finished_rows_leave_the_batch_and_nothing_changes(model_name, request, monkeypatch):
    """A stop token in seven: the same completions as with all rows kept to the end, in fewer and fewer rows."""
    model = request.getfixturevalue(model_name)
    prompts, settings = prompts_of([1, 4, 12, 20]), SamplingSettings(num_samples=24, max_new_tokens=70)
    results, rows = [], []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    for least in (16, 1000):
        rows.clear()
        monkeypatch.setattr(embedded, "MIN_FINISHED", least)
        results.append(drawn(sampler(model, 96, stops=list(range(200))), prompts, settings, [0, 1, 2, 3]))
        assert len(set(rows[1:])) >= 3 if least == 16 else set(rows[1:]) == {96}
    hook.remove()
    assert len({len(r.completion_ids) for r in results[0]}) > 20
    for ours, plain in zip(*results, strict=True):
        assert (ours.completion_ids, ours.finish_reason) == (plain.completion_ids, plain.finish_reason)
        assert ours.sampler_logprobs == pytest.approx(plain.sampler_logprobs, abs=1e-5)


def test_a_cache_with_room_is_a_cache_that_concatenates(tiny_model):
    """Tokens one by one past the room, then chosen rows, then more: the same keys and values, few copies."""
    plain, ours = DynamicCache(config=tiny_model.config), growing_cache(tiny_model.config)
    generator = torch.Generator().manual_seed(0)
    places = set()
    for step in range(80):
        if step == 50:
            for cache in (plain, ours):
                cache.batch_select_indices(torch.tensor([0, 2]))
        states = torch.randn(3 if step < 50 else 2, 2, 5 if step == 0 else 1, 4, generator=generator)
        pairs = [cache.update(states, -states, 0) for cache in (plain, ours)]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
        assert plain.get_seq_length() == ours.get_seq_length()
        places.add(ours.layers[0].keys.data_ptr())
    assert len(places) <= 5
