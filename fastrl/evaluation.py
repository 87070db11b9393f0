"""Evaluation: n samples per problem, scored; pass@k with intervals over problems, maj@k, diversity, entropy.

The JSON it writes: {"num_problems", "num_samples", "pass_at_k": {"1": {"mean", "low", "high"}, …}, "maj_at_k": same,
"mean_length", "mean_token_entropy", "distinct_answers", "majority_share", "pass_slope", "calibration",
"problems": [{"id", "num_correct", "num_samples"}, …], …}.
"""

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fastrl import statistics
from fastrl.calibration import calibration, stated_confidence
from fastrl.config import EvaluationConfig
from fastrl.policy.model import Policy
from fastrl.policy.packing import spread
from fastrl.policy.scoring import score
from fastrl.prompts import completion_texts, prompt_ids
from fastrl.records.durable import write_file
from fastrl.rollouts import Rollout
from fastrl.sampling.protocol import Sampler, SamplingSettings
from fastrl.seeds import seed_of
from fastrl.tasks import Problem, Task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import Verdict, VerifierPool
from fastrl.watchdog import alive

BLOCK_TOKENS = 2_000_000  # of completions held at once: about 1 GB of Python objects
NUM_ENTROPY_ROLLOUTS = 512  # a fixed random sample: entropy is a mean over tokens, not a count that needs them all


@dataclass(frozen=True)
class Outcome:
    """What the statistics need of one rollout; the rollout itself only where its entropy is asked for."""

    verdict: Verdict
    confidence: float | None
    num_tokens: int
    is_truncated: bool
    rollout: Rollout | None


@dataclass(frozen=True)
class Evaluator:
    """Everything an evaluation needs besides the problems and its settings."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    verifier: VerifierPool
    policy: Policy
    token_budget: int
    max_new_tokens: int
    correctness: Correctness = field(default_factory=Correctness)

    def run(self, problems: Sequence[Problem], config: EvaluationConfig) -> dict:
        """The evaluation as a JSON-able dict. ValueError for an empty split."""
        if not problems:
            raise ValueError(f"task '{self.task.name}' has no problems in split '{config.split}': nothing to evaluate")
        start = time.perf_counter()
        outcomes = self._outcomes(problems, config)
        result = self._summary(problems, outcomes, config)
        result["calibration"] = calibration([o.confidence for o in outcomes], [self._is_correct(o) for o in outcomes])
        return result | {"wall_time_s": round(time.perf_counter() - start, 2)}

    def _outcomes(self, problems: Sequence[Problem], config: EvaluationConfig) -> list[Outcome]:
        """Of every rollout, problem-major. Each rank samples and verifies a part of the problems; all get all.

        A rank goes block by block, of about `BLOCK_TOKENS` new tokens each: what is kept of a block are its outcomes.
        All ranks go through equally many, the last of which may be empty: sampling gathers sharded weights.
        """
        n, ranks = config.num_samples, self.policy.ranks
        chooser = random.Random(seed_of(config.seed, "entropy"))
        num_rollouts = n * len(problems)
        scored = set(chooser.sample(range(num_rollouts), min(NUM_ENTROPY_ROLLOUTS, num_rollouts)))
        prompts = [prompt_ids(self.task, p, self.tokenizer) for p in problems]
        parts = spread([len(ids) for ids in prompts], ranks.world_size)
        size = max(1, BLOCK_TOKENS // (n * self._settings(config).max_new_tokens))
        mine, outcomes = parts[ranks.rank], {}
        for start in range(0, max(map(len, parts)), size):
            alive()
            block = mine[start : start + size]
            outcomes |= self._block({i: (problems[i], prompts[i]) for i in block}, config, scored)
        everyones = ranks.merge(outcomes)
        return [everyones[i] for i in range(num_rollouts)]

    def _block(
        self, block: dict[int, tuple[Problem, list[int]]], config: EvaluationConfig, scored: set[int]
    ) -> dict[int, Outcome]:
        """Outcomes of some problems, by the number of the rollout; rollouts in `scored` keep their tokens."""
        n, asked = config.num_samples, list(block)
        seeds = [seed_of(config.seed, problem.id) for problem, _ in block.values()]
        rollouts = self.sampler.generate([ids for _, ids in block.values()], self._settings(config), seeds)
        texts = completion_texts(self.tokenizer, rollouts)
        of_rollout = [block[asked[r.group]][0] for r in rollouts]
        verdicts = self.verifier.score([(p.prompt, t, p.row) for p, t in zip(of_rollout, texts, strict=True)])
        indices = [n * i + sample for i in asked for sample in range(n)]
        return {
            i: Outcome(verdict, stated_confidence(t), len(r.completion_ids), r.is_truncated, r if i in scored else None)
            for i, r, t, verdict in zip(indices, rollouts, texts, verdicts, strict=True)
        }

    def _settings(self, config: EvaluationConfig) -> SamplingSettings:
        return SamplingSettings(
            num_samples=config.num_samples,
            max_new_tokens=config.max_new_tokens or self.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty,
        )

    def _is_correct(self, outcome: Outcome) -> bool:
        reward = self.correctness.reward(outcome.verdict.reward, is_truncated=outcome.is_truncated)
        return self.correctness.is_correct(reward)

    def _summary(self, problems: Sequence[Problem], outcomes: list[Outcome], config: EvaluationConfig) -> dict:
        n = config.num_samples
        is_correct = _by_problem([self._is_correct(o) for o in outcomes], n)
        answers = _by_problem([o.verdict.answer for o in outcomes], n)
        num_correct = [sum(row) for row in is_correct]
        distinct_correct = statistics.distinct_answers(
            [
                [a if ok else None for a, ok in zip(row, flags, strict=True)]
                for row, flags in zip(answers, is_correct, strict=True)
            ]
        )
        distinct = statistics.distinct_answers(answers)
        return {
            "num_problems": len(problems),
            "num_samples": n,
            "pass_at_k": _as_json(statistics.pass_curve(num_correct, n)),
            "maj_at_k": _as_json(statistics.maj_curve(answers, is_correct)),
            "mean_length": sum(o.num_tokens for o in outcomes) / len(outcomes),
            "truncated_share": sum(o.is_truncated for o in outcomes) / len(outcomes),
            "unverified_share": sum(o.verdict.reward is None for o in outcomes) / len(outcomes),
            "mean_token_entropy": self._entropy([o.rollout for o in outcomes if o.rollout]),
            "distinct_answers": float(distinct.mean()),
            "distinct_correct_answers": float(distinct_correct.mean()),
            "majority_share": float(statistics.majority_share(answers).mean()),
            "pass_slope": dataclasses.asdict(statistics.pass_slope(num_correct, n)) if n > 1 else None,
            "settings": dataclasses.asdict(config),
            "correctness": dataclasses.asdict(self.correctness),
            "problems": [
                {"id": p.id, "num_correct": c, "num_samples": n, "distinct_answers": int(d), "distinct_correct": int(e)}
                for p, c, d, e in zip(problems, num_correct, distinct, distinct_correct, strict=True)
            ],
        }

    def _entropy(self, sample: list[Rollout]) -> float:
        """Mean token entropy, in nats, of the policy at the training temperature over a fixed sample of rollouts."""
        longest = max(len(r.prompt_ids) + len(r.completion_ids) for r in sample)
        values = [v for _, entropy in score(self.policy, sample, max(self.token_budget, longest)) for v in entropy]
        return sum(values) / len(values)


def _by_problem(values: list, num_samples: int) -> list[list]:
    return [values[i : i + num_samples] for i in range(0, len(values), num_samples)]


def _as_json(curve: dict[int, statistics.Interval]) -> dict[str, dict[str, float]]:
    return {str(k): {"mean": v.mean, "low": v.low, "high": v.high} for k, v in curve.items()}


def save_evaluation(evaluation: dict, path: Path) -> None:
    """Write JSON that a power cut leaves whole."""
    write_file(path, json.dumps(evaluation, indent=1))


def load_evaluation(path: str | Path) -> dict:
    """Read an evaluation. FileNotFoundError, or ValueError for a file that is not one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation file {path}")
    try:
        evaluation = json.loads(path.read_text())
        _ = evaluation["pass_at_k"], evaluation["problems"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an evaluation written by fastrl ({error!r})") from None
    return evaluation


def metric_value(evaluation: dict, name: str) -> float:
    """The value of one of `best_metric_names` in an evaluation."""
    key, _, k = name.partition("/")
    return evaluation[key][k]["mean"] if k else evaluation[key]


def evaluation_metrics(evaluation: dict) -> dict[str, float]:
    """The evaluation's headline numbers under the names of the metrics log."""
    curves = {f"eval/pass_at_{k}": v["mean"] for k, v in evaluation["pass_at_k"].items()}
    scalars = ("mean_length", "mean_token_entropy", "distinct_answers", "truncated_share")
    return curves | {f"eval/{name}": evaluation[name] for name in scalars}
