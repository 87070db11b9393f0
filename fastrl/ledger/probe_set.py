"""The probe set: a few prompts and, for each, known and sampled completions, fixed before the first update.

A completion is one of three kinds:

    correct       solutions the task can list, and correct samples
    penalised     the wrong ones of the first `batch.rollouts_per_prompt` samples: what a first NSR step would push down
    other_wrong   wrong samples of later draws

All are different token sequences that the sampler could have drawn: those that end with a stop token and those of full
length without one. No two of these exclude less than the other, so their probabilities add up, and 1 − Σ is the
probability of every completion that is not listed. A completion whose verifier broke is not listed.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Literal

from transformers import PreTrainedTokenizerBase

from fastrl.config import TrainConfig
from fastrl.prompts import completion_texts, prompt_ids
from fastrl.records.durable import write_file
from fastrl.rollouts import Rollout
from fastrl.sampling.protocol import Sampler, SamplingSettings
from fastrl.seeds import seed_of
from fastrl.tasks import Problem, Task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import VerifierPool

Kind = Literal["correct", "penalised", "other_wrong"]
KINDS: tuple[Kind, ...] = ("correct", "penalised", "other_wrong")


@dataclass(frozen=True)
class Probe:
    """One completion of the set. num_samples: how often the initial policy drew it (0: only the task knows it)."""

    prompt: int  # index of the prompt
    kind: Kind
    ids: list[int]
    text: str
    finish_reason: str
    num_samples: int


@dataclass(frozen=True)
class ProbeSet:
    """Prompts and their completions. `rollouts` are the completions in order, as the policy scores them."""

    problem_ids: list[str]
    prompt_ids: list[list[int]]
    probes: list[Probe]

    @property
    def rollouts(self) -> list[Rollout]:
        return [
            Rollout(self.prompt_ids[p.prompt], p.ids, [0.0] * len(p.ids), p.finish_reason, p.prompt)
            for p in self.probes
        ]


def choose_problems(task: Task, count: int, seed: int) -> list[Problem]:
    """`count` different problems of the validation split, or of the training split where there is no other."""
    pool = list({p.id: p for p in task.validation or task.train}.values())
    return Random(seed_of(seed, "ledger")).sample(pool, min(count, len(pool)))


def build_probe_set(
    config: TrainConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    sampler: Sampler,
    verifier: VerifierPool,
) -> ProbeSet:
    """Draw and judge the completions. The sampler must hold the initial policy; no generator of the run is touched."""
    problems = choose_problems(task, config.ledger.num_prompts, config.run.seed)
    prompts = [prompt_ids(task, p, tokenizer) for p in problems]
    settings = SamplingSettings(config.ledger.num_samples, config.sampler.max_new_tokens, config.sampler.temperature)
    seeds = [seed_of(config.run.seed, "ledger", p.id) for p in problems]
    rollouts = sampler.generate(prompts, settings, seeds)
    texts = completion_texts(tokenizer, rollouts)
    items = [(problems[r.group].prompt, t, problems[r.group].row) for r, t in zip(rollouts, texts, strict=True)]
    correctness = Correctness(config.algorithm.correct_threshold, config.algorithm.truncated)
    for rollout, text, verdict in zip(rollouts, texts, verifier.score(items), strict=True):
        rollout.text = text
        rollout.reward = correctness.reward(verdict.reward, is_truncated=rollout.is_truncated)
    probes = []
    for index, problem in enumerate(problems):
        known = _known_solutions(task, problem, tokenizer, config.sampler.max_new_tokens)
        mine = [r for r in rollouts if r.group == index and r.reward is not None]
        probes += _sorted_out(index, known, mine, config.batch.rollouts_per_prompt, correctness)
    return ProbeSet([p.id for p in problems], prompts, probes)


def _known_solutions(
    task: Task, problem: Problem, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> dict[tuple[int, ...], str]:
    """Tokens → text of the solutions that the task lists and the sampler could draw."""
    texts = task.solutions(problem.row) if task.solutions else []
    encoded = {(*tokenizer(t, add_special_tokens=False).input_ids, tokenizer.eos_token_id): t for t in texts}
    return {ids: text for ids, text in encoded.items() if len(ids) <= max_new_tokens}


def _sorted_out(
    prompt: int,
    known: dict[tuple[int, ...], str],
    rollouts: list[Rollout],
    num_penalised: int,
    correctness: Correctness,
) -> list[Probe]:
    """The different completions of one prompt with their kinds; the wrong of the first num_penalised are penalised."""
    count = Counter(tuple(r.completion_ids) for r in rollouts)
    first = {tuple(r.completion_ids) for r in rollouts[:num_penalised]}
    probes = [Probe(prompt, "correct", list(ids), text, "stop", count[ids]) for ids, text in known.items()]
    for rollout in {tuple(r.completion_ids): r for r in rollouts}.values():
        ids = tuple(rollout.completion_ids)
        if ids in known:
            continue
        is_correct = correctness.is_correct(rollout.reward)
        kind = "correct" if is_correct else "penalised" if ids in first else "other_wrong"
        probes.append(Probe(prompt, kind, list(ids), rollout.text, rollout.finish_reason, count[ids]))
    return probes


def save_probe_set(probe_set: ProbeSet, path: Path) -> None:
    """Write JSON that a power cut leaves whole."""
    write_file(path, json.dumps(asdict(probe_set)))


def load_probe_set(path: Path) -> ProbeSet:
    """Inverse of `save_probe_set`. ValueError for a file that is none."""
    try:
        fields = json.loads(path.read_text())
        return ProbeSet(fields["problem_ids"], fields["prompt_ids"], [Probe(**p) for p in fields["probes"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a probe set written by fastrl ({error!r})") from None
