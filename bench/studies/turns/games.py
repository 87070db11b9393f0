"""Plays held-out games of twenty questions with a model and holds its beliefs against the exact posterior.

The belief is what the signal `delta-belief` credits: log π(thing | history), asked behind `=`. The posterior is uniform
over the things that agree with all answers, so a question adds log(before / after) nats to the thing's log-probability:
what a believer who knows the animals by heart would gain.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastrl.config.schema import TrainConfig
from fastrl.learning.turn_credit import Turns
from fastrl.learning.turn_signals import DeltaBelief
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.process.seeds import seed_of
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena
from fastrl.sampling.choose import build_sampler
from fastrl.sampling.protocol import SamplerParts, SamplingSettings
from fastrl.tasks import Problem, load_task
from fastrl.tasks.animals import agreeing, has, information
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verify import make_pool
from fastrl.trainer import StepTools

NUM_SAMPLES = 4


def play(config: TrainConfig, model: Path, seed: int) -> dict:
    """NUM_SAMPLES of each test game: wins by game, how they went, and of the first sample of each what it believed.

    gains: [game, number of the question from 0, exact nats, the model's nats] of every question that was answered.
    levels: [game, questions asked, exact log-prob of the thing, the model's].
    """
    task = load_task(config.task, splits=("test",))
    source = Pretrained(replace(config.model, path=str(model)))
    policy = Policy(load_model(source))
    sampler = build_sampler(SamplerParts(config.sampler, policy, source.tokenizer, None))
    settings = SamplingSettings(NUM_SAMPLES, config.sampler.max_new_tokens)
    with closing(sampler), make_pool(task.reward, config.task) as pool:
        arena = Arena(task, source.tokenizer, sampler, pool, policy, Correctness())
        drawn = arena.draw(task.test, settings, [seed_of(seed, i) for i in range(len(task.test))])
        first = drawn.take(np.arange(0, len(drawn), NUM_SAMPLES))
        tools = StepTools(arena, settings, config.batch.micro_batch_tokens, None, seed, 1)
        tag = "P" if config.task.name == "tagged-questions" else ""
        beliefs_J = DeltaBelief(elicit=f"{tag}=", truth="{secret}").beliefs(Turns.of(first), task.test, tools)
        histories = _histories(task.test, drawn, arena.turns(drawn))
    return {
        "num_samples": NUM_SAMPLES,
        "num_correct": (drawn.rewards_R >= 1).reshape(-1, NUM_SAMPLES).sum(axis=1).tolist(),
        **_manners(task.test, drawn, histories),
        **_beliefs(task.test, first, histories[::NUM_SAMPLES], beliefs_J),
    }


def _histories(problems: Sequence[Problem], drawn: Rollouts, turns: list[list[str]]) -> list[list[tuple[str, bool]]]:
    """The questions of each game that were answered, with their answers: all turns but the last."""
    found = []
    for group, texts in zip(drawn.groups_R.tolist(), turns, strict=True):
        asked = [text.strip().removesuffix("?")[-1] for text in texts[:-1]]
        found.append([(a, has(problems[group].row["secret"], a)) for a in asked])
    return found


def _manners(problems: Sequence[Problem], drawn: Rollouts, histories: list[list[tuple[str, bool]]]) -> dict:
    """Over all games: questions, bits a question, questions that told nothing, how games ended, worth of turns."""
    things = [problems[group].row["things"] for group in drawn.groups_R.tolist()]
    bits = [bit for names, history in zip(things, histories, strict=True) for bit in information(names, history)]
    turns = Turns.of(drawn)
    worths_J = turns.first(drawn.turn_rewards_N)
    known = worths_J[~np.isnan(worths_J)]
    return {
        "questions": float(np.mean([len(history) for history in histories])),
        "bits_per_question": float(np.mean(bits)) if bits else 0.0,
        "wasted_share": float(np.mean(np.array(bits) == 0)) if bits else 0.0,
        "reasons": dict(Counter(drawn.reasons_R.tolist()).most_common()),
        "turn_worth": float(known.mean()) if len(known) else None,
    }


def _beliefs(
    problems: Sequence[Problem], first: Rollouts, histories: list[list[tuple[str, bool]]], beliefs_J: np.ndarray
) -> dict:
    gains, levels, begin = [], [], 0
    for game, history in enumerate(histories):
        things, num_turns = problems[game].row["things"], int(first.num_turns_R[game])
        beliefs = beliefs_J[begin : begin + num_turns].tolist()
        begin += num_turns
        exact = [-math.log(len(agreeing(things, history[:k]))) for k in range(num_turns)]
        levels += [[game, k, exact[k], beliefs[k]] for k in range(num_turns)]
        gains += [[game, k, exact[k + 1] - exact[k], beliefs[k + 1] - beliefs[k]] for k in range(num_turns - 1)]
    return {"gains": gains, "levels": levels}
