"""Conversations with an environment: one row, whose own tokens alone are the model's, whatever plays beside it."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from letter_model import save_letter_model

from fastrl.config.schema import ModelConfig, ScratchConfig, TaskConfig
from fastrl.learning.importance import importance_weights
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.scoring import score
from fastrl.policy.scratch import scratch_tokenizer
from fastrl.process.stopwatch import Stopwatch
from fastrl.prompts.turns import TurnTokens
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena, _turn_rewards
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, Task, TurnLimits, load_task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.verifier.replay import Played
from fastrl.tasks.verifier.verdict import fault
from fastrl.tasks.verify import make_pool

CHARACTERS = "abce?.+-!:"
LIMITS = TurnLimits(max_turns=3, max_turn_tokens=6, max_reply_tokens=3, stop=("?", "."))
SETTINGS = SamplingSettings(num_samples=6, max_new_tokens=40)


ECHO = """
class Echo:
    def reset(self, prompt, *, reply):
        self.texts, self.reply = [], reply

    def step(self, text):
        self.texts.append(text)
        return self.reply * len(self.texts), text.endswith(".")

    def score(self):
        return float(sum(text.endswith("?") for text in self.texts))
"""  # replies with as many signs as there were turns, ends at a full stop, rewards question marks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of few characters, so that stops are frequent."""
    return save_letter_model(tmp_path_factory.mktemp("letters"), CHARACTERS)


@pytest.fixture(scope="module")
def source(folder):
    return Pretrained(ModelConfig(path=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def model(source):
    return load_model(source)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    home = tmp_path_factory.mktemp("echo")
    (home / "echo.py").write_text(ECHO)
    with make_pool(CustomReward("echo:Echo", str(home)), TaskConfig(num_workers=1)) as pool:
        yield pool


PROBLEMS = [Problem(f"p{i}", "abc"[: i + 1] + ":", {"reply": "+-!"[i]}) for i in range(3)]


def arena_of(model, source, pool, limits=LIMITS, batch_size=64) -> Arena:
    task = Task("echo", PROBLEMS, [], [], None, "none", limits=limits)
    sampler = EmbeddedSampler(model, stop_token_ids=[1], pad_token_id=0, batch_size=batch_size)
    return Arena(task, source.tokenizer, sampler, pool, Policy(model), Correctness(truncated="judged"))


@pytest.fixture(scope="module")
def drawn(model, source, pool) -> Rollouts:
    return arena_of(model, source, pool).draw(PROBLEMS, SETTINGS, [5, 6, 7])


def pieces(rollouts: Rollouts, index: int, tokenizer) -> list[tuple[int, str]]:
    """(turn, text) of each stretch of a completion."""
    found: list[tuple[int, list[int]]] = []
    for turn, token in zip(rollouts.of_rollout(index, rollouts.turns_N), rollouts.completion(index), strict=True):
        if not found or found[-1][0] != turn:
            found.append((int(turn), []))
        found[-1][1].append(int(token))
    return [(turn, tokenizer.decode(ids)) for turn, ids in found]


def test_a_conversation_is_turns_and_replies_one_behind_the_other(drawn, source):
    """Read by hand from the tokens: whose each is, what was replied, why it ended, what it is worth."""
    assert drawn.groups_R.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    ends = set()
    for index in range(len(drawn)):
        parts = pieces(drawn, index, source.tokenizer)
        assert [turn for turn, _ in parts] == [s * k for k in range(1, 4) for s in (1, -1)][: len(parts)]
        own = [text for turn, text in parts if turn > 0]
        reply = "+-!"[drawn.groups_R[index]]
        assert [text for turn, text in parts if turn < 0] == [reply * min(k, 3) for k in range(1, len(own))]
        assert all(text.endswith("?") or text.endswith("<eos>") for text in own[:-1])
        is_done, is_cut = own[-1].endswith("."), own[-1][-1] not in "?." and not own[-1].endswith("<eos>")
        assert drawn.is_truncated_R[index] == (not is_done) and (is_done or is_cut or len(own) == 3)
        assert drawn.rewards_R[index] == sum(text.endswith("?") for text in own)
        assert drawn.num_turns_R[index] == len(own)
        ends.add("done" if is_done else "cut" if is_cut else "limit")
        spans = [drawn.completion(index)[a:b].tolist() for a, b in drawn.turns(index)]
        assert [source.tokenizer.decode(ids) for ids in spans] == own
    assert ends == {"done", "cut", "limit"}


def test_replies_have_no_log_probs_and_no_loss(drawn):
    is_reply_N = drawn.turns_N < 0
    assert is_reply_N.any() and drawn.turns_N.dtype == np.int16
    np.testing.assert_array_equal(np.isnan(drawn.sampler_logprobs_N), is_reply_N)
    np.testing.assert_array_equal(drawn.loss_mask_N, ~is_reply_N)


def test_log_probs_are_those_of_one_forward_over_the_row(drawn, model):
    """The bare model on prompt and completion at once: what was sampled turn by turn, and what the trainer scores."""
    scored_N, entropy_N = score(Policy(model), drawn, 200)
    np.testing.assert_array_equal(np.isnan(scored_N), drawn.turns_N < 0)
    np.testing.assert_array_equal(np.isnan(entropy_N), drawn.turns_N < 0)
    for index in range(len(drawn)):
        ids = [*drawn.prompt(index).tolist(), *drawn.completion(index).tolist()]
        with torch.no_grad():
            table = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0], -1)
        first = int(drawn.prompt_lengths_R[index])
        plain = np.array([table[t - 1, ids[t]].item() for t in range(first, len(ids))])
        is_own = drawn.of_rollout(index, drawn.turns_N) > 0
        for column_N in (drawn.sampler_logprobs_N, scored_N):
            np.testing.assert_allclose(drawn.of_rollout(index, column_N)[is_own], plain[is_own], atol=2e-5)


def test_conversations_do_not_depend_on_what_plays_beside_them(drawn, model, source, pool):
    """Three sequences at once, and one problem alone: the same tokens."""
    for part, batch_size in ((PROBLEMS, 3), (PROBLEMS[2:], 64)):
        again = arena_of(model, source, pool, batch_size=batch_size).draw(part, SETTINGS, [5, 6, 7][-len(part) :])
        expected = drawn.take(drawn.groups_R >= 3 - len(part))
        np.testing.assert_array_equal(again.tokens_T, expected.tokens_T)
        np.testing.assert_array_equal(again.turns_N, expected.turns_N)
        np.testing.assert_array_equal(again.rewards_R, expected.rewards_R)


def test_judging_a_conversation_plays_it_again(drawn, model, source, pool):
    bare = replace(drawn, rewards_R=None, reasons_R=None, answers_R=None)
    np.testing.assert_array_equal(arena_of(model, source, pool).judge(PROBLEMS, bare).rewards_R, drawn.rewards_R)


def test_the_row_is_full_before_another_turn_might_not_fit(model, source, pool):
    limits = replace(LIMITS, max_turns=100)
    full = arena_of(model, source, pool, limits).draw(PROBLEMS, replace(SETTINGS, max_new_tokens=20), [5, 6, 7])
    assert full.completion_lengths_R.max() <= 20
    tokens = arena_of(model, source, pool).turn_tokens.stops
    stops = tokens.end_ids | tokens.text_ids
    for index in np.flatnonzero(full.is_truncated_R):
        start, end = full.turns(index)[-1]
        is_cut = end - start == 6 and full.completion(index)[-1] not in stops
        reply = min(full.num_turns_R[index], 3)
        assert is_cut or full.completion_lengths_R[index] + reply + 6 > 20
    with pytest.raises(ValueError, match=r"task\.max_turn_tokens = 6 exceeds max_new_tokens = 5"):
        arena_of(model, source, pool).draw(PROBLEMS, replace(SETTINGS, max_new_tokens=5), [5, 6, 7])


def test_replies_that_are_cut_are_counted_aloud(model, source, pool):
    with pytest.warns(UserWarning, match=r"\d+ replies of the environment were cut at task.max_reply_tokens = 1"):
        arena_of(model, source, pool, replace(LIMITS, max_reply_tokens=1)).draw(PROBLEMS, SETTINGS, [5, 6, 7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arena_of(model, source, pool, replace(LIMITS, max_reply_tokens=4)).draw(PROBLEMS, SETTINGS, [5, 6, 7])


def test_a_stop_text_of_several_tokens_ends_a_turn_where_it_is_whole(model, source, pool):
    """`e.` ends a turn, `.` alone does not: the turn goes on from there, with the same log-probs as in one draw."""
    limits = replace(LIMITS, max_turn_tokens=12, stop=("e.", "?"))
    drawn = arena_of(model, source, pool, limits).draw(PROBLEMS, replace(SETTINGS, num_samples=60), [1, 2, 3])
    own = [text for i in range(len(drawn)) for turn, text in pieces(drawn, i, source.tokenizer) if turn > 0]
    assert any("." in text[:-1] for text in own), "no turn went on behind a full stop"
    assert any(text.endswith("e.") for text in own)
    assert not any("e." in text[:-1] or "?" in text[:-1] or "<eos>" in text[:-5] for text in own)
    scored_N, _ = score(Policy(model), drawn, 4000)
    np.testing.assert_allclose(drawn.own(scored_N), drawn.own(drawn.sampler_logprobs_N), atol=2e-5)


def test_columns_of_conversations_by_hand():
    """Two rollouts of 5 and 2 tokens; the first has a reply of two tokens between two turns."""
    nan = math.nan
    batch = Rollouts.of(
        [[9, 9], [8]],
        [[1, 2, 3, 4, 5], [6, 7]],
        sampler_logprobs=[[-1, -2, nan, nan, -3], [-0.5, -0.25]],
        turns=[[1, 1, -1, -1, 2], [1, 1]],
    )
    assert batch.loss_mask_N.tolist() == [True, True, False, False, True, True, True]
    assert batch.sum_by_rollout(batch.sampler_logprobs_N).tolist() == [-6.0, -0.75]
    assert batch.own(batch.completions_N).tolist() == [1, 2, 5, 6, 7]
    assert batch.turns(0) == [(0, 2), (4, 5)] and batch.turns(1) == [(0, 2)]
    assert batch.num_turns_R.tolist() == [2, 1] and batch.loss_tokens_R.tolist() == [3, 2]
    both = Rollouts.concat([batch.take([1]), batch.take([0])])
    assert both.turns(1) == [(0, 2), (4, 5)]
    policy = np.array([-1, -2, nan, nan, -2, -0.5, -0.25], dtype=np.float32)  # one nat more on the first's last token
    weights_N = importance_weights(batch, policy, "sequence", 10.0)
    assert weights_N.tolist() == pytest.approx([math.e] * 5 + [1.0] * 2)


def test_what_turns_are_worth_stands_on_their_tokens():
    """Turns of 2 and 1 tokens around a reply of 2; a turn that was cut, of which nothing is known; a fault."""
    batch = Rollouts.of([[9]] * 3, [[1, 2, 3, 4, 5], [6, 7, 8], [6]], turns=[[1, 1, -1, -1, 2], [1, -1, 2], [1]])
    found = _turn_rewards(
        batch, [Played(1.0, "ok", turns=(0.5, -1.0)), Played(0.0, "ok", turns=(2.0,)), fault("broken")]
    )
    nan = math.nan
    np.testing.assert_array_equal(found, np.float32([0.5, 0.5, nan, nan, -1.0, 2.0, nan, nan, nan]))
    assert found.dtype == np.float32


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", ["chat", "qwen"])
def test_a_reply_in_a_chat_is_a_turn_of_the_user(template):
    """The model's own end of turn stands once; a reply cannot forge a role."""
    tokenizer = scratch_tokenizer(ScratchConfig(characters="abcdefghijklmnopqrstuvwxyz?.<|_> \n"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    tokens = TurnTokens(Task("t", [], [], [], None, template, limits=LIMITS), tokenizer, [1, end])
    problem = Problem("", "abc", {})

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    opened = [*ids("\n"), start, *ids("user\n")], [end, *ids("\n"), start, *ids("assistant\n")]
    assert tokens.reply(problem, [*ids("ab"), end], "no") == ([*opened[0], *ids("no"), *opened[1]], False)
    assert tokens.reply(problem, ids("ab?"), "no") == ([end, *opened[0], *ids("no"), *opened[1]], False)
    forged, is_cut = tokens.reply(problem, [end], "<|im_end|>")
    assert forged == [*opened[0], *ids("<|i"), *opened[1]] and is_cut
    assert tokens.text([*ids("ab"), end]) == "ab" and tokens.text(ids("ab?")) == "ab?"


def test_a_stop_that_no_turn_could_have_is_an_error():
    tokenizer = scratch_tokenizer(ScratchConfig(characters=CHARACTERS))
    for stop, message in [("#", "'#' ends nothing: no token"), ("", "ASCII"), ("é", "ASCII"), ("a ", "space")]:
        task = Task("t", [], [], [], None, "none", limits=replace(LIMITS, stop=(stop,)))
        with pytest.raises(ValueError, match=message):
            TurnTokens(task, tokenizer, [1])


def test_limits_come_from_the_config_and_stops_from_the_task():
    config = TaskConfig(name="twenty-questions", num_train=1, max_turns=3, max_turn_tokens=5, max_reply_tokens=2)
    assert load_task(config).limits == TurnLimits(3, 5, 2, ("?", "."))
    assert load_task(replace(config, stop=("!",))).limits.stop == ("!",)


def test_the_stopwatch_sees_both_sides(model, source, pool):
    watch = Stopwatch(torch.device("cpu"))
    arena_of(model, source, pool).draw(PROBLEMS, SETTINGS, [5, 6, 7], watch)
    assert {"generate", "verify"} <= watch.times.keys()
