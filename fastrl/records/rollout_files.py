"""The scored rollouts of each step as compressed JSON lines. Beyond a size limit the oldest steps are deleted.

rollouts/step-NNNNNN.jsonl.gz, a line per rollout: `zcat` or Python's `gzip.open` reads them. Log-probs and entropies
have five decimals, and are null for replies of an environment. `pieces` are the texts of the completion's tokens;
`updated_logprobs`, where `run.rescored_every` asks for them, the trainer's after the step's update.
"""

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fastrl.records.durable import write_file
from fastrl.records.jsonl import as_json, dump_line
from fastrl.rollouts import Rollouts
from fastrl.tasks import Problem

DECIMALS = 5


class RolloutFiles:
    """The files of a run. limit_mib: beyond it the oldest steps are deleted, which `say` tells once; 0: no limit."""

    def __init__(self, folder: Path, limit_mib: int, say: Callable[[str], None]):
        self.folder, self.limit_mib, self.say = folder, limit_mib, say
        self._bytes = {p: p.stat().st_size for p in sorted(folder.glob("step-*"))}
        self._has_said = False

    def write_step(
        self,
        step: int,
        rollouts: Rollouts,
        problems: Sequence[Problem],
        texts: Sequence[str],
        pieces: Sequence[Sequence[str]],
        parts: Sequence[str] = (),
    ) -> None:
        """Write a step's file, replacing an earlier one; it is on disk on return.

        texts, pieces: of the completions, and of the tokens of each. parts: names of the rewards that were added up.
        """
        path = self.folder / f"step-{step:06d}.jsonl.gz"
        text = "".join(dump_line(as_json(row)) for row in _rows(rollouts, problems, texts, pieces, parts))
        write_file(path, gzip.compress(text.encode(), compresslevel=5, mtime=0))  # no date: equal runs, equal bytes
        self._bytes[path] = path.stat().st_size
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        total = sum(self._bytes.values())
        while self.limit_mib and total > self.limit_mib << 20 and len(self._bytes) > 1:
            oldest = min(self._bytes.keys() - {newest})
            total -= self._bytes.pop(oldest)
            oldest.unlink(missing_ok=True)
            self._tell(oldest)

    def _tell(self, oldest: Path) -> None:
        if not self._has_said:
            self.say(
                f"{self.folder} has reached run.rollouts_mib = {self.limit_mib}: from {oldest.name} on, the oldest "
                "steps are deleted"
            )
            self._has_said = True


def _rows(
    rollouts: Rollouts,
    problems: Sequence[Problem],
    texts: Sequence[str],
    pieces: Sequence[Sequence[str]],
    parts: Sequence[str],
) -> Iterator[dict]:
    """One row per rollout. `rewards`, where several were added up: each by its name, null where it gave nothing."""
    for i, text in enumerate(texts):
        problem, reward = problems[rollouts.groups_R[i]], rollouts.rewards_R[i]
        yield {
            "problem_id": problem.id,
            "prompt": problem.prompt,
            "completion": text,
            "reward": None if np.isnan(reward) else float(reward),
            **({"rewards": dict(zip(parts, rollouts.parts_R[i].tolist(), strict=True))} if parts else {}),
            "penalty": float(rollouts.penalties_R[i]),
            "reason": rollouts.reasons_R[i],
            **_credit(rollouts, i),
            "finish_reason": "length" if rollouts.is_truncated_R[i] else "stop",
            "group": int(rollouts.groups_R[i]),
            "weight_version": int(rollouts.weight_versions_R[i]),
            "completion_ids": rollouts.completion(i),
            "pieces": list(pieces[i]),
            **_by_token(rollouts, i),
        }


def _credit(rollouts: Rollouts, index: int) -> dict:
    """`advantage` is the credit that the model's own tokens share; null beside `credits` if these differ.

    Conversations have `credits` in any case: 0 for replies. `turns`: as in `Rollouts.turns_N`.
    """
    credits = rollouts.of_rollout(index, rollouts.credits_N)
    turns = None if rollouts.turns_N is None else rollouts.of_rollout(index, rollouts.turns_N)
    own = credits if turns is None else credits[turns > 0]
    is_even = len(own) == 0 or bool((own == own[0]).all())
    row: dict = {"advantage": (float(own[0]) if len(own) else 0.0) if is_even else None}
    if not is_even or turns is not None:
        row["credits"] = _rounded(credits)
    return row if turns is None else row | {"turns": turns}


def _by_token(rollouts: Rollouts, index: int) -> dict:
    columns = {
        "sampler_logprobs": rollouts.sampler_logprobs_N,
        "trainer_logprobs": rollouts.policy_logprobs_N,
        "updated_logprobs": rollouts.updated_logprobs_N,
        "entropy": rollouts.entropy_N,
    }
    return {n: _rounded(rollouts.of_rollout(index, c)) for n, c in columns.items() if c is not None}


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values.astype(np.float64), DECIMALS)
