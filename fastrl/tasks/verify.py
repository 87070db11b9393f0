"""Scoring outside of training: a file of completions, and the one call that finds a broken reward before it matters."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from . import find_kind
from .faults import LIMITS
from .pool import Item, VerifierPool
from .problem import Problem, Reward, Task, TaskKind
from .rows import read_json_lines

if TYPE_CHECKING:
    from fastrl.config import TaskConfig


def make_pool(reward: Reward, config: "TaskConfig") -> VerifierPool:
    """The verifier pool with the limits of a task's config."""
    return VerifierPool(reward, timeout_s=config.timeout_s, memory_mb=config.memory_mb, num_workers=config.num_workers)


def check_reward(task: Task, config: "TaskConfig") -> None:
    """Call the reward once, in a worker, on the first problem with an empty completion.

    Raises ValueError when it cannot be imported, raises, hangs, or returns no finite number.
    """
    problem = _first_problem(task)
    if problem is None:
        return
    with VerifierPool(task.reward, timeout_s=config.timeout_s, memory_mb=config.memory_mb, num_workers=1) as pool:
        (verdict,) = pool.score([(problem.prompt, "", problem.row)])
    if verdict.is_fault or verdict.reason in LIMITS:
        limits = f"task.timeout_s = {config.timeout_s:g}, task.memory_mb = {config.memory_mb}"
        raise ValueError(
            f"the reward of task {task.name!r} failed on problem {problem.id!r} with an empty completion: "
            f"{verdict.reason} ({limits}). It must return a finite number for every completion, for example 0.0 here"
        )


def verify_file(config: "TaskConfig", input: Path, output: Path) -> dict:
    """Score a JSON-lines file of completions; write the same rows, in order, with `reward` and `reason` added.

    Each row has `completion` and what the task needs: `answer` for math, `numbers` and `target` for countdown, the
    entry for reasoning-gym, anything for a user's reward. `reward` is null where the verifier itself failed.
    The output appears under its name only when it is complete.

    Returns {"num_rows", "num_correct" (reward 1 or more), "mean_reward", "num_faults", "reasons": {reason: count}}.
    Raises FileNotFoundError, or ValueError naming file and line of a row that lacks something.
    """
    input, output = Path(input), Path(output)
    if not input.is_file():
        raise FileNotFoundError(f"no such file: {str(input)!r} (looked in {Path.cwd()})")
    kind = find_kind(config.name)
    located = list(read_json_lines(input))
    items = [_read_item(kind, fields, where) for where, fields in located]
    if not items:
        raise ValueError(f"{input} has no rows; at least one with 'completion' is needed")
    with make_pool(kind.reward, config) as pool:
        verdicts = pool.score(items)
    scored = [v.reward for v in verdicts if v.reward is not None]
    pairs = zip(located, verdicts, strict=True)
    _write_rows(output, [fields | {"reward": v.reward, "reason": v.reason} for (_, fields), v in pairs])
    return {
        "num_rows": len(verdicts),
        "num_correct": sum(reward >= 1.0 for reward in scored),
        "mean_reward": sum(scored) / len(scored) if scored else None,
        "num_faults": pool.num_faults,
        "reasons": dict(Counter(v.reason for v in verdicts).most_common()),
    }


def _first_problem(task: Task) -> Problem | None:
    return next((problems[0] for problems in (task.train, task.validation, task.test) if problems), None)


def _read_item(kind: TaskKind, fields: dict, where: str) -> Item:
    completion = fields.get("completion")
    if not isinstance(completion, str):
        found = f"it is {completion!r}" if "completion" in fields else f"the row has {sorted(fields)}"
        raise ValueError(f"{where}: 'completion' must be the model's text; {found}")
    data = {name: value for name, value in fields.items() if name not in ("completion", "reward", "reason")}
    prompt = next((data[name] for name in ("prompt", "problem", "question") if isinstance(data.get(name), str)), "")
    return prompt, completion, kind.read_row(data, where)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
