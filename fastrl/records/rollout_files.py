"""The scored rollouts of each step: JSON lines, compressed, and no more of them than there is room for.

rollouts/step-NNNNNN.jsonl.gz, a line per rollout: `zcat` or Python's `gzip.open` reads them. Log-probs and entropies
have five decimals; per-token values that nobody computed are null.
"""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

from fastrl.records.durable import write_file
from fastrl.records.jsonl import as_json, dump_line
from fastrl.rollouts import Rollout

DECIMALS = 5


class RolloutFiles:
    """The files of a run. limit_mib: beyond it the oldest steps go, which is said once through `say`; 0: none goes."""

    def __init__(self, folder: Path, limit_mib: int, say: Callable[[str], None]):
        self.folder, self.limit_mib, self.say = folder, limit_mib, say
        self._bytes = {p: p.stat().st_size for p in sorted(folder.glob("step-*"))}
        self._has_said = False

    def write_step(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write the file of a step, over an earlier one; it is on disk on return."""
        path = self.folder / f"step-{step:06d}.jsonl.gz"
        text = "".join(dump_line(as_json(_row(r))) for r in rollouts)
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


def _row(rollout: Rollout) -> dict:
    return {
        "problem_id": rollout.problem_id,
        "prompt": rollout.prompt_text,
        "completion": rollout.text,
        "reward": rollout.reward,
        "penalty": rollout.penalty,
        "reason": rollout.reason,
        "advantage": rollout.advantage,
        "finish_reason": rollout.finish_reason,
        "group": rollout.group,
        "weight_version": rollout.weight_version,
        "completion_ids": rollout.completion_ids,
        "sampler_logprobs": _rounded(rollout.sampler_logprobs),
        "trainer_logprobs": _rounded(rollout.trainer_logprobs),
        "entropy": _rounded(rollout.entropy),
    }


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(float(v), DECIMALS) for v in values]
