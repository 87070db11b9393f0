"""Credit by turns against numbers worked out by hand; beliefs against the exact posterior and against a bare model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from letter_model import save_letter_model

from fastrl.config.schema import ModelConfig, TaskConfig
from fastrl.learning.turn_credit import Turns, compared
from fastrl.learning.turn_signals import DeltaBelief, Rlvmr
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, load_task
from fastrl.tasks.animals import information, posterior
from fastrl.tasks.correctness import Correctness
from fastrl.trainer import StepTools

CHARACTERS = "abcdefghijklmnopqrstuvwxyzMFWELTDNSHKC?=.:+-PR"
PROBLEM = Problem("p", "bcez:", {"things": "bcez", "secret": "e", "num_questions": 4})
GAMES = [
    ["F?", "+", "M?", "-", "=e."],
    ["S?", "-", "=b."],
    ["F?", "+", "=e."],
]  # Fliers: b, e; mammals: b, c, z; z is striped


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """Real tools with a random model of the game's characters."""
    folder = save_letter_model(tmp_path_factory.mktemp("letters"), CHARACTERS)
    source = Pretrained(ModelConfig(path=str(folder), device="cpu"))
    task = load_task(TaskConfig(name="twenty-questions"), splits=())
    arena = Arena(task, source.tokenizer, None, None, Policy(load_model(source)), Correctness())
    return StepTools(arena, SamplingSettings(3, 24), 512, None, 0, 1)


def conversations(tools, games: list[list[str]], rewards: list[float], worths: list[list[float]] = ()) -> Rollouts:
    """One group of games of PROBLEM, turn, reply, turn, …; worths: by turn."""
    tokenizer, turns = tools.arena.tokenizer, []
    for game in games:
        turns.append([(j // 2 + 1) * (-1 if j % 2 else 1) for j, piece in enumerate(game) for _ in piece])
    batch = Rollouts.of(
        [tokenizer(PROBLEM.prompt).input_ids] * len(games),
        [tokenizer("".join(game), add_special_tokens=False).input_ids for game in games],
        groups=[0] * len(games),
        turns=turns,
        rewards_R=np.array(rewards),
        penalties_R=np.zeros(len(games)),
    )
    by_token = [worths[i][t - 1] if t > 0 and worths else math.nan for i, row in enumerate(turns) for t in row]
    return replace(batch, turn_rewards_N=np.array(by_token, dtype=np.float32))


class Oracle(StepTools):
    """Scores as a policy that knows the exact posterior: what stands behind `history=` has its probability."""

    def score(self, rollouts, *, model="policy", prompts=None):
        tokenizer, found = self.arena.tokenizer, []
        for i in range(len(rollouts)):
            said = tokenizer.decode(rollouts.prompt(i).tolist()).removeprefix("<bos>")
            history = said.removeprefix("bcez:").removesuffix("=")
            answers = [(history[j], history[j + 2] == "+") for j in range(0, len(history), 3)]
            found.append(math.log(posterior("bcez", answers)[tokenizer.decode(rollouts.completion(i).tolist())]))
        return np.array(found)


def by_turn(turns: Turns, credits_N: np.ndarray) -> list[float]:
    """The credit that all tokens of each turn share."""
    values = []
    for i, start, end in zip(turns.rollouts_J, turns.starts_J, turns.ends_J, strict=True):
        (value,) = set(turns.batch.of_rollout(i, credits_N)[start:end].tolist())
        values.append(value)
    return values


def test_turns_are_compared_with_their_likes_by_hand():
    """1, 1 and 0: mean ⅔, unbiased std 1/√3. A lone one, and one that is missing, get nothing."""
    values = np.array([1.0, 5.0, 1.0, 0.0, math.nan, 2.0, 2.0])
    found = compared(values, ["a", "b", "a", "a", "a", "c", "c"])
    assert found == pytest.approx([3**-0.5, 0, 3**-0.5, -2 / 3**0.5, 0, 0, 0], abs=1e-5)
    assert compared(np.zeros(0), []).tolist() == []


def test_a_reply_gains_what_the_posterior_says(tools):
    """From four things to two, to one; from four to three. An exact believer gains the information, in nats."""
    oracle = Oracle(**vars(tools))
    turns = Turns.of(conversations(tools, GAMES, [1.0, 0.0, 1.0]))
    gains = DeltaBelief(elicit="=", truth="{secret}").gains(turns, [PROBLEM], oracle)
    assert gains == pytest.approx([math.log(2), math.log(2), 0, math.log(4 / 3), 0, math.log(2), 0])
    bits = information("bcez", [("F", True), ("M", False)])
    assert gains[:2] == pytest.approx(np.array(bits) * math.log(2))


def test_delta_belief_by_hand(tools):
    """First turns: ln 2, ln 4/3, ln 2. Second: ln 2, a lost and a won guess (0, 2). Third: one alone."""
    oracle, batch = Oracle(**vars(tools)), conversations(tools, GAMES, [1.0, 0.0, 1.0])
    credits_N = DeltaBelief(elicit="=", truth="{secret}")(batch, [PROBLEM], oracle)
    expected = [3**-0.5, -0.2014, 0, -2 / 3**0.5, -0.8840, 3**-0.5, 1.0854]
    assert by_turn(Turns.of(batch), credits_N) == pytest.approx(expected, abs=1e-4)
    assert not credits_N[batch.turns_N < 0].any()
    bare = DeltaBelief(elicit="=", truth="{secret}", weight=0.0)(batch, [PROBLEM], oracle)
    assert by_turn(Turns.of(batch), bare) == pytest.approx([0, -(3**-0.5), 0, 0, -(3**-0.5), 0, 2 / 3**0.5], abs=1e-5)
    faulty = replace(batch, rewards_R=np.array([1.0, 0.0, math.nan]))
    half = 0.5**0.5
    credits_N = DeltaBelief(elicit="=", truth="{secret}")(faulty, [PROBLEM], oracle)
    assert by_turn(Turns.of(batch), credits_N) == pytest.approx([half, half, 0, -half, -half, 0, 0], abs=1e-5)


def test_beliefs_are_log_probs_of_the_truth_behind_the_history(tools):
    """From the bare model. It comes to believe the truth more here and less there: a loss is worth no less than 0."""
    batch = conversations(tools, GAMES, [0.0, 0.0, 0.0])
    signal, turns = DeltaBelief(elicit="=", truth="b?"), Turns.of(batch)
    model, tokenizer = tools.arena.policy.model, tools.arena.tokenizer
    expected = []
    for game in GAMES:
        for j in range(0, len(game), 2):
            ids = tokenizer("bcez:" + "".join(game[:j]) + "=b?").input_ids
            with torch.no_grad():
                table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected.append(table[-3, ids[-2]].item() + table[-2, ids[-1]].item())
    assert signal.beliefs(turns, [PROBLEM], tools) == pytest.approx(expected, abs=1e-5)
    gains = signal.gains(turns, [PROBLEM], tools)
    assert min(gains) < -1e-3 < 1e-3 < max(gains), gains
    worths = compared(np.maximum(gains, 0), list(zip(turns.groups_J, turns.numbers_J, strict=True)))
    assert by_turn(turns, signal(batch, [PROBLEM], tools)) == pytest.approx(worths)


def test_a_belief_that_does_not_fit_is_said(tools):
    """The longest history has 5 + 6 tokens, then `=` and `e`, with a first token before all of them or not."""
    batch, signal = conversations(tools, GAMES, [1.0, 0.0, 1.0]), DeltaBelief(elicit="=", truth="{secret}")
    longest = len(tools.arena.tokenizer("bcez:F?+M?-=e").input_ids)
    with pytest.warns(UserWarning, match=rf"1 of 4 conversations with their truth exceed .* {longest - 1} tokens"):
        found = signal.beliefs(Turns.of(batch), [PROBLEM], replace(tools, max_sequence_tokens=longest - 1))
    assert np.isnan(found).tolist() == [False, False, True, False, False, False, False]
    assert np.isfinite(signal.beliefs(Turns.of(batch), [PROBLEM], replace(tools, max_sequence_tokens=longest))).all()


def test_rlvmr_by_hand(tools):
    """Plans worth 1, 1, 0; one reflection alone; one turn without a tag. Won and lost: ±1/√2."""
    games = [["PF?", "+", "RM?", "-", "P=e."], ["PS?", "-", "=b."]]
    batch = conversations(tools, games, [1.0, 0.0], [[1.0, 0.0, 1.0], [0.0, 0.0]])
    credits_N = Rlvmr(tags=("P", "R"))(batch, [PROBLEM], tools)
    won, plan = 0.5 * 0.5**0.5, 0.5 * 3**-0.5
    expected = [won + plan, won, won + plan, -won - 2 * plan, -won - 0.05]
    assert by_turn(Turns.of(batch), credits_N) == pytest.approx(expected, abs=1e-5)
    alone = Rlvmr(tags=("P", "R"), alpha=0.0, format_penalty=0.3)(batch, [PROBLEM], tools)
    assert by_turn(Turns.of(batch), alone) == pytest.approx([2 * plan, 0, 2 * plan, -4 * plan, -0.3], abs=1e-5)


def test_what_cannot_credit_turns_says_so(tools):
    plain = replace(conversations(tools, GAMES, [1.0, 0.0, 1.0]), turns_N=None)
    for signal in (DeltaBelief(truth="{secret}"), Rlvmr()):
        with pytest.raises(ValueError, match="credits turns needs a task with an environment"):
            signal(plain, [PROBLEM], tools)
    with pytest.raises(ValueError, match=r"asks for the field 'answer'; the row of problem 'p' has \['num_questions'"):
        DeltaBelief()(conversations(tools, GAMES, [1.0, 0.0, 1.0]), [PROBLEM], tools)
    with pytest.raises(ValueError, match="expected texts that a turn may open with"):
        Rlvmr(tags=()).models()
