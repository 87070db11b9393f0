"""Tagged questions: what a turn is worth by hand, demonstrations that win, a run that credits turns one by one."""

import random
from dataclasses import replace

import numpy as np
import pytest
from test_training import config_of
from test_twenty_questions import CHARACTERS, TASK

from fastrl.config.schema import (
    AlgorithmConfig,
    DemonstrationConfig,
    OptimizerConfig,
    SamplerConfig,
    ScratchConfig,
    WarmupConfig,
)
from fastrl.learning.turn_signals import DeltaBelief, Rlvmr
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train
from fastrl.tasks import load_task
from fastrl.tasks.animals import ATTRIBUTES, expected_information
from fastrl.tasks.tagged_questions import TaggedQuestions
from fastrl.warmup import warmup

TAGGED = replace(TASK, name="tagged-questions", max_turn_tokens=5)


@pytest.mark.parametrize(
    ("turns", "reward", "worths"),
    [
        (["PF?", "PM?", "P=e."], 1.0, (1, 1, 1)),  # 4 → 2 → 1
        (
            ["PS?", "PF?", "P=e."],
            1.0,
            (0, 1, 0),
        ),  # S tells 0.81 bits of 1; of three F tells 0.92, the most; two are left
        (["F?", "RM?", "R=e."], 1.0, (0, 0, 0)),  # no tag; nothing to reflect on
        (["PF?", "PF?", "RM?", "P=e."], 1.0, (1, 0, 1, 1)),  # asked twice, then a question that tells something
        (["PF?", "PF?", "RF?", "R=e."], 1.0, (1, 0, 0, 1)),  # again, and then a guess that may be right
        (["PF?", "PF?", "R=z."], 0.0, (1, 0, 0)),  # no flier
        (["P=e."], 1.0, (0,)),  # right by luck
        (["P F?", "PM"], 0.0, (1, 0)),
        (["PP?"], 0.0, (0,)),
        (["P"], 0.0, (0,)),
    ],
)
def test_what_a_turn_is_worth_by_hand(turns, reward, worths):
    """Bat, cat, eagle, zebra. Fliers: b, e. Mammals: b, c, z. Meat: b, c, e. Striped: z. The eagle is sought."""
    game = TaggedQuestions()
    game.reset("bcez:", things="bcez", secret="e", num_questions=3)
    for turn in turns:
        game.step(turn)
    assert game.score().reward == reward and game.score().turns == worths


def test_demonstrations_win_and_reflect_where_a_question_told_nothing():
    wasted = total = 0
    for prompt, said in load_task(TAGGED, splits=()).demonstrations(random.Random(1), 300):
        things, game, history, tag = prompt[:-1], TaggedQuestions(), [], "P"
        game.reset(prompt, things=things, secret=said[-1][2], num_questions=4)
        for turn, reply in zip(said[:-1:2], said[1::2], strict=True):
            assert turn[0] == tag and game.step(turn) == (reply, False)
            tells = expected_information(things, history, turn[1]) > 0
            tag = "P" if tells else "R"
            history.append((turn[1], reply == "+"))
            wasted, total = wasted + (not tells), total + 1
        assert said[-1][0] == tag and game.step(said[-1]) == ("", True) and game.score().reward == 1.0
    assert 0.25 < wasted / total < 0.35 and len(ATTRIBUTES) == 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return warmup(
        WarmupConfig(
            scratch=ScratchConfig(CHARACTERS + "PR", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64),
            task=TAGGED,
            data=DemonstrationConfig(num_steps=40, batch_size=32),
            optimizer=OptimizerConfig(lr=1e-2, schedule="cosine"),
            output=str(tmp_path_factory.mktemp("warm") / "model"),
        )
    )


@pytest.mark.parametrize("name", ["delta-belief", "rlvmr"])
def test_a_run_credits_turns_one_by_one(tmp_path, model, name):
    """Equal within a turn, nothing for a reply, not the same for every turn."""
    sections = {
        "delta_belief": DeltaBelief(elicit="P=", truth="{secret}"),
        "rlvmr": Rlvmr(tags=("P", "R"), format_penalty=0.0),
    }
    algorithm = AlgorithmConfig(objective="none", signals=(name,), **sections)
    config = config_of(tmp_path / "run", model, num_steps=2, scored_rollouts=64)
    sampler = SamplerConfig(max_new_tokens=30)
    folder = train(replace(config, task=TAGGED, sampler=sampler, algorithm=algorithm))
    games = [row for step in (1, 2) for row in read_jsonl(folder / "rollouts" / f"step-{step:06d}.jsonl.gz")]
    differing = 0
    for game in games:
        credits = game.get("credits") or [game["advantage"]] * len(game["completion_ids"])
        turns = [[]]
        for credit, logprob in zip(credits, game["sampler_logprobs"], strict=True):
            if logprob is None:
                assert credit == 0.0
                turns.append([])
            else:
                turns[-1].append(credit)
        assert all(len(set(turn)) <= 1 for turn in turns)
        differing += len({turn[0] for turn in turns if turn}) > 1
    assert differing > 2
    assert all(np.isfinite(row["grad_norm"]) for row in read_jsonl(folder / "metrics.jsonl") if "grad_norm" in row)
