"""Evaluation: n samples per problem, scored; pass@k with intervals over problems, maj@k, diversity, entropy.

The JSON it writes: {"task", "num_problems", "num_samples", "reward": {"mean", "low", "high", "is_graded"}, "pass_at_k":
{"1": {"mean", "low", "high"}, …}, "maj_at_k": same, "mean_length", "mean_token_entropy", "distinct_answers",
"majority_share", "pass_slope", "calibration", "measures", "belief", "problems": [{"id", "num_correct", "num_samples"},
…], …}. What the model answered goes beside it: `kept`.
"""

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrl import statistics
from fastrl.config.schema import EvaluationConfig
from fastrl.evaluation.belief import check_probe, measure_belief
from fastrl.evaluation.calibration import calibration
from fastrl.evaluation.results import curve_as_json
from fastrl.policy.scoring import score
from fastrl.process.seeds import seed_of
from fastrl.rollouts import Rollouts, decoded, encoded, text_column
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, Task

NUM_ENTROPY_ROLLOUTS = 512  # a fixed random sample, of belief, too: means over tokens, not counts that need them all


@dataclass(frozen=True)
class Outcomes:
    """What the statistics need: columns over all rollouts, ordered by problem.

    confidences_R: what completions state, NaN if they state nothing. texts_R: of those that are kept, None for others.
    scored: the rollouts whose entropy is measured.
    """

    rewards_R: np.ndarray
    answers_R: np.ndarray
    reasons_R: np.ndarray
    lengths_R: np.ndarray
    is_truncated_R: np.ndarray
    confidences_R: np.ndarray
    texts_R: np.ndarray
    scored: Rollouts


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the policy of `arena`. max_new_tokens: used where the settings give none."""

    arena: Arena
    token_budget: int
    max_new_tokens: int

    def run(self, problems: Sequence[Problem], config: EvaluationConfig) -> dict:
        """The evaluation as a JSON-able dict; `completions`: those that are kept. ValueError for an empty split."""
        if not problems:
            name = self.arena.task.name
            raise ValueError(f"task '{name}' has no problems in split '{config.split}': nothing to evaluate")
        start = time.perf_counter()
        if config.belief.probe:
            check_probe(self.arena, problems, config.belief, config.max_new_tokens or self.max_new_tokens)
        outcomes = self._outcomes(problems, config)
        result = self._summary(problems, outcomes, config)
        confidences = [None if np.isnan(c) else c for c in outcomes.confidences_R.tolist()]
        result["calibration"] = calibration(confidences, self._is_correct_R(outcomes).tolist())
        is_judged_R = ~np.isnan(outcomes.rewards_R)
        result["measures"] = self.arena.task.measured(outcomes.reasons_R[is_judged_R].tolist())
        if config.belief.probe:
            result["belief"] = measure_belief(self.arena, problems, outcomes.scored, config.belief)
        result["completions"] = self._kept(problems, outcomes, config.num_samples)
        return result | {"wall_time_s": round(time.perf_counter() - start, 2)}

    def _outcomes(self, problems: Sequence[Problem], config: EvaluationConfig) -> Outcomes:
        """Each rank samples and judges a part of the problems, block by block; all ranks get all outcomes."""
        n, ranks = config.num_samples, self.arena.policy.ranks
        chooser = random.Random(seed_of(config.seed, "entropy"))
        is_scored_R = np.zeros(n * len(problems), dtype=bool)
        is_scored_R[chooser.sample(range(len(is_scored_R)), min(NUM_ENTROPY_ROLLOUTS, len(is_scored_R)))] = True
        seeds = [seed_of(config.seed, problem.id) for problem in problems]
        columns, scored = [], []
        for block in self.arena.blocks(problems, self._settings(config), seeds):
            numbers = block.groups_R * n + np.arange(len(block)) % n
            is_kept_R = numbers % n < config.kept_completions
            columns.append(_columns(block, self.arena.task, is_kept_R) | {"numbers": numbers})
            scored.append(replace(block.take(is_scored_R[numbers]), texts_R=None))
        mine = {name: np.concatenate([block[name] for block in columns]) for name in columns[0]}
        everyones = [decoded(arrays) for arrays in ranks.gather_arrays(encoded(mine))]
        joined = {name: np.concatenate([one[name] for one in everyones]) for name in mine}
        order = np.argsort(joined.pop("numbers"))
        return Outcomes(**{k: v[order] for k, v in joined.items()}, scored=self.arena.exchanged(scored))

    def _settings(self, config: EvaluationConfig) -> SamplingSettings:
        return SamplingSettings(
            num_samples=config.num_samples,
            max_new_tokens=config.max_new_tokens or self.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
        )

    def _is_correct_R(self, outcomes: Outcomes) -> np.ndarray:
        return self.arena.correctness.are_correct(outcomes.rewards_R)

    def _kept(self, problems: Sequence[Problem], outcomes: Outcomes, num_samples: int) -> list[dict]:
        is_correct_R = self._is_correct_R(outcomes)
        return [
            {
                "problem_id": problems[i // num_samples].id,
                "prompt": problems[i // num_samples].prompt,
                "sample": i % num_samples,
                "completion": text,
                "reward": None if np.isnan(outcomes.rewards_R[i]) else float(outcomes.rewards_R[i]),
                "is_correct": bool(is_correct_R[i]),
                "reason": outcomes.reasons_R[i],
                "answer": outcomes.answers_R[i],
                "num_tokens": int(outcomes.lengths_R[i]),
                "finish_reason": "length" if outcomes.is_truncated_R[i] else "stop",
            }
            for i, text in enumerate(outcomes.texts_R)
            if text is not None
        ]

    def _summary(self, problems: Sequence[Problem], outcomes: Outcomes, config: EvaluationConfig) -> dict:
        n = config.num_samples
        is_correct_PG, answers_PG = self._is_correct_R(outcomes).reshape(-1, n), outcomes.answers_R.reshape(-1, n)
        is_correct, answers = is_correct_PG.tolist(), answers_PG.tolist()
        num_correct = is_correct_PG.sum(axis=1).tolist()
        distinct_correct = statistics.distinct_answers(np.where(is_correct_PG, answers_PG, None).tolist())
        distinct = statistics.distinct_answers(answers)
        return {
            "task": self.arena.task.name,
            "num_problems": len(problems),
            "num_samples": n,
            "reward": _reward(outcomes.rewards_R.reshape(-1, n)),
            "pass_at_k": curve_as_json(statistics.pass_curve(num_correct, n)),
            "maj_at_k": curve_as_json(statistics.maj_curve(answers, is_correct)),
            "mean_length": float(outcomes.lengths_R.mean()),
            "truncated_share": float(outcomes.is_truncated_R.mean()),
            "unverified_share": float(np.isnan(outcomes.rewards_R).mean()),
            "mean_token_entropy": self._entropy(outcomes.scored),
            "distinct_answers": float(distinct.mean()),
            "distinct_correct_answers": float(distinct_correct.mean()),
            "majority_share": float(statistics.majority_share(answers).mean()),
            "pass_slope": dataclasses.asdict(statistics.pass_slope(num_correct, n)) if n > 1 else None,
            "settings": dataclasses.asdict(config),
            "correctness": dataclasses.asdict(self.arena.correctness),
            "problems": [
                {"id": p.id, "num_correct": c, "num_samples": n, "distinct_answers": int(d), "distinct_correct": int(e)}
                for p, c, d, e in zip(problems, num_correct, distinct, distinct_correct, strict=True)
            ],
        }

    def _entropy(self, sample: Rollouts) -> float:
        """Mean token entropy, in nats, of the policy at the training temperature over a fixed sample of rollouts."""
        longest = int((sample.prompt_lengths_R + sample.completion_lengths_R).max())
        _, entropy_N = score(self.arena.policy, sample, max(self.token_budget, longest))
        own = sample.own(entropy_N).tolist()
        return sum(own) / len(own)


def _reward(rewards_PG: np.ndarray) -> dict | None:
    """The mean reward with its band; is_graded: whether some reward is neither 0 nor 1, so that pass@k says less."""
    interval = statistics.mean_reward(rewards_PG)
    if interval is None:
        return None
    is_graded = not np.isin(rewards_PG[~np.isnan(rewards_PG)], (0, 1)).all()
    return dataclasses.asdict(interval) | {"is_graded": bool(is_graded)}


def _columns(block: Rollouts, task: Task, is_kept_R: np.ndarray) -> dict[str, np.ndarray]:
    confidences = [task.read_confidence(text) for text in block.texts_R]
    return {
        "rewards_R": block.rewards_R,
        "answers_R": block.answers_R,
        "reasons_R": block.reasons_R,
        "lengths_R": block.completion_lengths_R,
        "is_truncated_R": block.is_truncated_R,
        "confidences_R": np.array([np.nan if c is None else c for c in confidences], dtype=np.float64),
        "texts_R": text_column(text if keep else None for text, keep in zip(block.texts_R, is_kept_R, strict=True)),
    }
