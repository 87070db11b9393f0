"""The probe set: a few prompts and, for each, known and sampled completions, fixed before the first update.

A completion is one of three kinds:

    correct       solutions the task can list, and correct samples
    penalised     the wrong ones of the first `batch.rollouts_per_prompt` samples: what a first NSR step would push down
    other_wrong   wrong samples of later draws

All are different token sequences that the sampler could have drawn: they end with a stop token, or have full length
without one. None is the beginning of another, so their probabilities add up, and 1 − Σ is the probability of every
completion that is not listed. A completion whose verifier broke is not listed. A conversation has the probability of
the model's own tokens: what an environment replies is a function of them.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np

from fastrl.config.schema import TrainConfig
from fastrl.process.seeds import seed_of
from fastrl.records.durable import write_file
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, Task

Kind = Literal["correct", "penalised", "other_wrong"]
KINDS: tuple[Kind, ...] = ("correct", "penalised", "other_wrong")


@dataclass(frozen=True)
class Probe:
    """One completion of the set. num_samples: how often the initial policy drew it (0: only the task knows it).

    turns: of a conversation, for each token, as in `Rollouts.turns_N`; else empty.
    """

    prompt: int  # index of the prompt
    kind: Kind
    ids: list[int]
    text: str
    finish_reason: str
    num_samples: int
    turns: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeSet:
    """Prompts and their completions. `rollouts` are the completions in order, as the policy scores them."""

    problem_ids: list[str]
    prompt_ids: list[list[int]]
    probes: list[Probe]

    @cached_property
    def rollouts(self) -> Rollouts:
        prompts = [self.prompt_ids[p.prompt] for p in self.probes]
        is_truncated = [p.finish_reason == "length" for p in self.probes]
        groups = [p.prompt for p in self.probes]
        turns = [p.turns for p in self.probes] if any(p.turns for p in self.probes) else None
        completions = [p.ids for p in self.probes]
        return Rollouts.of(prompts, completions, is_truncated=is_truncated, groups=groups, turns=turns)


def choose_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """`count` different problems of the validation split, or of the training split where there is no other."""
    pool = list({p.id: p for p in task.validation or task.train}.values())
    return Random(seed_of(seed, "ledger")).sample(pool, min(count, len(pool)))


def build_probe_set(config: TrainConfig, arena: Arena) -> ProbeSet:
    """Draw and judge the completions. The sampler must hold the initial policy; no generator of the run is touched."""
    problems = choose_problems(arena.task, config.ledger.num_prompts, config.run.seed)
    settings = SamplingSettings(config.ledger.num_samples, config.sampler.max_new_tokens, config.sampler.temperature)
    rollouts = arena.draw(problems, settings, [seed_of(config.run.seed, "ledger", p.id) for p in problems])
    rollouts = rollouts.take(~np.isnan(rollouts.rewards_R))
    probes = []
    for index, problem in enumerate(problems):
        known = _known_solutions(arena, problem, config.sampler.max_new_tokens)
        mine = rollouts.take(rollouts.groups_R == index)
        drawn = _drawn(index, mine, arena.texts(mine), arena.correctness.are_correct(mine.rewards_R))
        probes += _sorted_out(index, known, drawn, config.batch.rollouts_per_prompt)
    return ProbeSet([p.id for p in problems], arena.prompts(problems), probes)


def _known_solutions(arena: Arena, problem: Problem, max_new_tokens: int) -> dict[tuple[int, ...], str]:
    """Tokens → text of the solutions that the task lists and the sampler could draw."""
    tokenizer, texts = arena.tokenizer, arena.task.solutions(problem.row) if arena.task.solutions else []
    encoded = {(*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id): t for t in texts}
    return {ids: text for ids, text in encoded.items() if len(ids) <= max_new_tokens}


def _drawn(prompt: int, rollouts: Rollouts, texts: list[str], is_correct_R: np.ndarray) -> list[Probe]:
    """One probe for each sample of a prompt; wrong ones are `other_wrong` for now."""
    return [
        Probe(
            prompt,
            "correct" if is_correct else "other_wrong",
            rollouts.completion(i).tolist(),
            text,
            "length" if rollouts.is_truncated_R[i] else "stop",
            1,
            [] if rollouts.turns_N is None else rollouts.of_rollout(i, rollouts.turns_N).tolist(),
        )
        for i, (text, is_correct) in enumerate(zip(texts, is_correct_R.tolist(), strict=True))
    ]


def _sorted_out(prompt: int, known: dict[tuple[int, ...], str], drawn: list[Probe], num_penalised: int) -> list[Probe]:
    """The distinct completions of one prompt. Wrong ones among its first num_penalised samples are `penalised`."""
    count = Counter(tuple(p.ids) for p in drawn)
    first = {tuple(p.ids) for p in drawn[:num_penalised]}
    probes = [Probe(prompt, "correct", list(ids), text, "stop", count[ids]) for ids, text in known.items()]
    for ids, probe in {tuple(p.ids): p for p in drawn}.items():
        if ids in known:
            continue
        kind = "penalised" if probe.kind == "other_wrong" and ids in first else probe.kind
        probes.append(replace(probe, kind=kind, num_samples=count[ids]))
    return probes


def save_probe_set(probe_set: ProbeSet, path: Path) -> None:
    """Write JSON that a power cut leaves whole."""
    write_file(path, json.dumps(asdict(probe_set)))


def load_probe_set(path: Path) -> ProbeSet:
    """Inverse of `save_probe_set`. ValueError for any other file."""
    try:
        fields = json.loads(path.read_text())
        return ProbeSet(fields["problem_ids"], fields["prompt_ids"], [Probe(**p) for p in fields["probes"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a probe set written by fastrl ({error!r})") from None
