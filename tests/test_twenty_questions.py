"""Twenty questions: the oracle and the game by hand, demonstrations that win, a run that plays, resumes and is kept."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from test_training import assert_bitwise_equal, config_of, weights

from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.config.schema import (
    DemonstrationConfig,
    LedgerConfig,
    OptimizerConfig,
    SamplerConfig,
    ScratchConfig,
    TaskConfig,
    TrainConfig,
    WarmupConfig,
)
from fastrl.policy.scratch import scratch_tokenizer
from fastrl.prompts.turns import TurnTokens
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train
from fastrl.tasks import load_task
from fastrl.tasks.animals import ATTRIBUTES, HOLDS, NAMES, expected_information, has, information, posterior
from fastrl.tasks.twenty_questions import TwentyQuestions, read_row, split_of
from fastrl.warmup import _rollouts, warmup

CHARACTERS = "abcdefghijklmnopqrstuvwxyzMFWELTDNSHKC?=.:+-"
TASK = TaskConfig(
    name="twenty-questions", num_train=30, num_validation=4, num_test=4, num_workers=1,
    max_turns=6, max_turn_tokens=4, max_reply_tokens=1,
)  # fmt: skip


def test_the_world_is_closed_and_its_things_differ():
    assert len(NAMES) == 26 and len(ATTRIBUTES) == 12 and HOLDS.keys() == ATTRIBUTES.keys()
    assert len({tuple(has(thing, a) for a in ATTRIBUTES) for thing in NAMES}) == 26
    assert has("b", "F") and has("b", "M") and not has("p", "F") and has("z", "S") and not has("h", "S")


def test_the_posterior_by_hand():
    """Bat, cat, eagle, zebra. Fliers: b, e. Mammals: b, c, z. Meat: b, c, e. Striped: z."""
    assert posterior("bcez", []) == dict.fromkeys("bcez", 0.25)
    assert posterior("bcez", [("F", True)]) == {"b": 0.5, "c": 0.0, "e": 0.5, "z": 0.0}
    assert posterior("bcez", [("E", True)]) == {"b": 1 / 3, "c": 1 / 3, "e": 1 / 3, "z": 0.0}
    assert posterior("bcez", [("F", False), ("S", True)]) == {"b": 0.0, "c": 0.0, "e": 0.0, "z": 1.0}
    with pytest.raises(ValueError, match="no thing among 'bcez' agrees"):
        posterior("bcez", [("F", True), ("S", True)])


def test_information_by_hand():
    """Four things are two bits. F halves them; F again tells nothing; M then decides."""
    assert information("bcez", [("F", True), ("F", True), ("M", False)]) == [1.0, 0.0, 1.0]
    assert information("bcez", [("S", True)]) == [2.0]
    assert information("bcez", [("S", False)]) == [pytest.approx(math.log2(4 / 3))]
    assert expected_information("bcez", [], "F") == 1.0
    assert expected_information("bcez", [], "S") == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))
    assert expected_information("bcez", [("F", True)], "F") == 0.0
    assert expected_information("bcez", [("F", True)], "L") == 1.0


def play(*turns: str, num_questions: int = 2) -> tuple[list[tuple[str, bool]], object]:
    game = TwentyQuestions()
    game.reset("bcez:", things="bcez", secret="e", num_questions=num_questions)
    return [game.step(turn) for turn in turns], game.score()


@pytest.mark.parametrize(
    ("turns", "answers", "reward", "reason"),
    [
        (["F?", "M?", "=e."], [("+", False), ("-", False), ("", True)], 1.0, "ok"),
        ([" F?\n", "=b."], [("+", False), ("", True)], 0.0, "wrong"),
        (["=e."], [("", True)], 1.0, "ok"),
        (["F?", "M?"], [("+", False), ("-", False)], 0.0, "no guess"),
        (["F?", "M?", "E?"], [("+", False), ("-", False), ("", True)], 0.0, "no guess"),
        (["f?"], [("", True)], 0.0, "syntax"),
        (["F"], [("", True)], 0.0, "syntax"),
        (["F?M?"], [("", True)], 0.0, "syntax"),
        ([""], [("", True)], 0.0, "syntax"),
    ],
)
def test_the_game_by_hand(turns, answers, reward, reason):
    found, score = play(*turns)
    assert found == answers and (score.reward, score.reason) == (reward, reason)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"things": "aab"}, "'things' must be at least two different letters"),
        ({"things": "aB"}, "'things' must be at least two different letters"),
        ({"secret": "d"}, "'secret' must be one of 'abc', found 'd'"),
        ({"secret": ""}, "'secret' must be one of 'abc', found ''"),
        ({"num_questions": 21}, "'num_questions' must be a whole number from 0 to 20, found 21"),
        ({"num_questions": None}, "no field 'num_questions'"),
    ],
)
def test_a_row_that_is_no_game_is_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        read_row({"things": "abc", "secret": "a", "num_questions": 3} | fields, "games.jsonl:1")


def test_games_are_split_by_their_things():
    task = load_task(replace(TASK, num_train=300, num_validation=50, num_test=50))
    for split, count in (("train", 300), ("validation", 50), ("test", 50)):
        problems = getattr(task, split)
        assert len(problems) == count == len({p.id for p in problems})
        assert {split_of(p.row["things"]) for p in problems} == {split}
        assert all(p.prompt == p.row["things"] + ":" and p.row["secret"] in p.row["things"] for p in problems)
    assert load_task(TASK).train[:5] == load_task(TASK).train[:5]


def test_demonstrations_win_and_every_question_tells_something():
    for prompt, said in load_task(TASK, splits=()).demonstrations(random.Random(1), 300):
        things, game, history = prompt[:-1], TwentyQuestions(), []
        game.reset(prompt, things=things, secret=said[-1][1], num_questions=4)
        for turn, reply in zip(said[:-1:2], said[1::2], strict=True):
            assert expected_information(things, history, turn[0]) > 0
            history.append((turn[0], reply == "+"))
            assert game.step(turn) == (reply, False)
        assert game.step(said[-1]) == ("", True) and game.score().reward == 1.0
        assert len(history) == 4 or posterior(things, history)[said[-1][1]] == 1.0


def test_a_demonstration_as_tokens_by_hand():
    """Credit for turns alone; no end of the sequence behind a stop text, one behind a turn without."""
    tokenizer = scratch_tokenizer(ScratchConfig(characters=CHARACTERS))
    tokens = TurnTokens(load_task(TASK, splits=()), tokenizer, [1])
    batch = _rollouts(tokens, [("be:", ["F?", "+", "M?", "-", "=e."]), ("be:", ["=b", "", "=e."])])
    assert tokenizer.decode(batch.completion(0).tolist()) == "F?+M?-=e."
    assert batch.of_rollout(0, batch.turns_N).tolist() == [1, 1, -1, 2, 2, -2, 3, 3, 3]
    assert tokenizer.decode(batch.completion(1).tolist()) == "=b<eos>=e."
    assert batch.of_rollout(1, batch.turns_N).tolist() == [1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(batch.loss_mask_N, batch.turns_N > 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model after a few supervised steps: it has the grammar, mostly."""
    folder = tmp_path_factory.mktemp("warm") / "model"
    return warmup(
        WarmupConfig(
            scratch=ScratchConfig(CHARACTERS, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64),
            task=TASK,
            data=DemonstrationConfig(num_steps=40, batch_size=32),
            optimizer=OptimizerConfig(lr=1e-2, schedule="cosine"),
            output=str(folder),
        )
    )


def run_config(folder, model, **run) -> TrainConfig:
    config = config_of(folder, model, **run)
    ledger = LedgerConfig(every=2, num_prompts=2, num_samples=8, num_positions=16)
    return replace(config, task=TASK, sampler=SamplerConfig(max_new_tokens=24), ledger=ledger)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    return train(run_config(tmp_path_factory.mktemp("runs") / "whole", model))


def test_a_run_plays_and_says_how(finished):
    rows = [row for row in read_jsonl(finished / "metrics.jsonl") if "turns/mean" in row]
    assert len(rows) == 4 and all(1 < row["turns/mean"] <= 6 and row["turns/mean_tokens"] > 1 for row in rows)
    assert all(math.isfinite(row[key]) for row in rows for key in ("entropy/mean", "mismatch/max_abs", "grad_norm"))
    assert max(row["mismatch/max_abs"] for row in rows) < 1e-4
    games = read_jsonl(finished / "rollouts" / "step-000001.jsonl.gz")
    for game in games:  # a reply stands where no log-prob does, and it is true
        is_reply = [value is None for value in game["sampler_logprobs"]]
        assert is_reply == [value is None for value in game["trainer_logprobs"]]
        assert all(game["completion"].replace("<eos>", "e")[i] in "+-" for i, yes in enumerate(is_reply) if yes) or (
            "<" in game["completion"]
        )
        assert [turn < 0 for turn in game["turns"]] == is_reply
        own = {credit for credit, reply in zip(game["credits"], is_reply, strict=True) if not reply}
        assert own == {game["advantage"]} and "".join(game["pieces"]) == game["completion"]
        assert {credit for credit, reply in zip(game["credits"], is_reply, strict=True) if reply} <= {0.0}
    assert any(any(value is None for value in game["sampler_logprobs"]) for game in games)
    assert {game["reason"] for game in games} <= {"ok", "wrong", "syntax", "no guess", "truncated"}


def test_games_are_evaluated_and_kept_in_the_ledger(finished):
    evaluation = json.loads((finished / "eval" / "test.json").read_text())
    assert evaluation["num_problems"] == 4 and 0 <= evaluation["pass_at_k"]["4"]["mean"] <= 1
    assert math.isfinite(evaluation["mean_token_entropy"])
    lines = read_jsonl(finished / "ledger.jsonl")
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:  # probabilities of the model's own tokens: they sum to at most one
        listed = sum(line["mass"][kind] for kind in ("correct", "penalised", "other_wrong"))
        assert listed > 0 and line["mass"]["rest"] >= 0
    probes = json.loads((finished / "ledger" / "probe_set.json").read_text())["probes"]
    assert any(-1 in probe["turns"] for probe in probes)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, finished, model):
    folder = train(run_config(tmp_path / "run", model, num_steps=2))
    train(run_config(tmp_path / "run", model), resume=True)
    assert_bitwise_equal(weights(folder), weights(finished))


def test_what_does_not_fit_is_an_error_before_the_model(tmp_path, model, capsys):
    config = run_config(tmp_path / "run", model)
    for changes, message in (
        ({"max_turn_tokens": 25}, "task.max_turn_tokens = 25 exceeds max_new_tokens = 24"),
        ({"stop": ("#",)}, "the stop text '#' ends nothing: no token of the tokenizer holds '#'"),
        ({"template": "chat"}, "chat template cannot render"),
    ):
        (tmp_path / "bad.toml").write_text(to_toml(replace(config, task=replace(TASK, **changes))))
        assert main(["train", str(tmp_path / "bad.toml")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
