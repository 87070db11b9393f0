"""Scoring outside of training: a file of completions, and one call that finds a broken reward before a run starts."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from .choose import MAX_UNUSABLE, find_kind
from .correctness import Correctness
from .given import Given, with_given
from .problem import Environment, GroupReward, Problem, Prompt, Reward, Task, TaskKind, content_id
from .rows import PROMPT_FIELDS, UnusableRow, read_json_lines
from .verifier.faults import LIMIT_REASONS
from .verifier.pool import Item, VerifierPool
from .verifier.verdict import Verdict, fault
from .verifier.worker import Call

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

OWN_FIELDS = ("completion", "reward", "reason", "finish_reason")  # of a row that is verified


def make_pool(reward: Reward | GroupReward | Environment, config: "TaskConfig") -> VerifierPool:
    """The verifier pool with the limits of a task's config."""
    return VerifierPool(reward, timeout_s=config.timeout_s, memory_mb=config.memory_mb, num_workers=config.num_workers)


def check_reward(task: Task, config: "TaskConfig") -> bool:
    """Call the reward once, in a worker, on the first problem with an empty completion. Whether it is an environment.

    Raises ValueError when it cannot be imported, raises, hangs, or returns no finite number.
    """
    problem = _first_problem(task)
    if problem is None:
        return False
    with VerifierPool(task.reward, timeout_s=config.timeout_s, memory_mb=config.memory_mb, num_workers=1) as pool:
        is_environment = pool.unit() == "conversation"
        if is_environment:
            (verdict,) = pool.play([Call(problem.prompt, [""], problem.row)])
        else:
            (verdict,) = pool.score([(problem.prompt, "", problem.row)])
    if verdict.is_fault or verdict.reason in LIMIT_REASONS:
        limits = f"task.timeout_s = {config.timeout_s:g}, task.memory_mb = {config.memory_mb}"
        what, given = ("environment", "turn") if is_environment else ("reward", "completion")
        raise ValueError(
            f"the {what} of task {task.name!r} failed on problem {problem.where or problem.id!r} with an empty "
            f"{given}: {verdict.reason} ({limits}){_advice(verdict.reason, given)}"
        )
    return is_environment


def _advice(reason: str, given: str) -> str:
    """How to mend what a reward does wrong most often."""
    if "returned" in reason:
        return f". It must return a finite float for every {given}, for example 0.0 for this one"
    if "unexpected keyword argument" in reason:
        return ". Every field of a row is handed over by its name: end the arguments with **row"
    return ""


def verify_file(
    config: "TaskConfig",
    input: Path,
    output: Path,
    correctness: Correctness = Correctness(),  # noqa: B008
    *,
    reward: Given | None = None,
) -> dict:
    """Score a JSON-lines file of completions; write the same rows, in order, with `reward` and `reason` added.

    Each row has `completion` and what the task needs: `answer` for math, `numbers` and `target` for countdown, the
    entry for reasoning-gym, anything for a user's reward. `completion`, `reward`, `reason` and `finish_reason` are not
    handed to the reward. For a reward that judges groups, rows whose other fields are all equal are one group, wherever
    they stand.

    `reward` becomes null where the verifier failed or the row lacks what the task needs (a null, empty or absent
    answer); `reason` says which. A row whose `finish_reason` is "length" was cut at the token limit and counts as
    `correctness` says. The output appears under its name only when it is complete.

    reward: as for `train`, one alone.

    Returns {"num_rows", "num_correct", "mean_reward", "num_faults", "reasons": {reason: count}}, and "num_groups" where
    the reward judges groups.
    Raises FileNotFoundError, or ValueError naming file and line of a row that lacks something.
    """
    input, output = Path(input), Path(output)
    if not input.is_file():
        raise FileNotFoundError(f"no such file: {str(input)!r} (looked in {Path.cwd()})")
    config, given = with_given(config, reward)
    kind = find_kind(config.name, config.reward_folder or str(input.parent), given)
    located = list(read_json_lines(input))
    items = [read_item(kind, fields, where) for where, fields in located]
    unusable = [item for item in items if isinstance(item, UnusableRow)]
    if not items:
        raise ValueError(f"{input} has no rows; at least one with 'completion' is needed")
    if len(unusable) > MAX_UNUSABLE * len(items):
        raise ValueError(f"{len(unusable)} of {len(items)} rows cannot be scored, the first: {unusable[0]}")
    with make_pool(kind.reward, config) as pool:
        _refuse_environment(pool, config)
        found = iter(_score(pool, [item for item in items if not isinstance(item, UnusableRow)]))
    verdicts = [fault(str(item)) if isinstance(item, UnusableRow) else next(found) for item in items]
    rows = [_counted(fields, v, correctness) for (_, fields), v in zip(located, verdicts, strict=True)]
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    _write_rows(output, rows)
    return {
        "num_rows": len(verdicts),
        "num_correct": sum(map(correctness.is_correct, rewards)),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "num_faults": sum(verdict.is_fault for verdict in verdicts) - len(unusable),
        "reasons": dict(Counter(row["reason"] for row in rows).most_common()),
        **({"num_groups": pool.num_calls} if pool.unit() == "group" else {}),
    }


def _refuse_environment(pool: VerifierPool, config: "TaskConfig") -> None:
    if pool.unit() == "conversation":
        raise ValueError(
            f"task {config.name!r} is an environment: its conversations are judged while they are sampled, and a file "
            "of completions has none; expected the task of a reward"
        )


def _score(pool: VerifierPool, items: list[Item]) -> list[Verdict]:
    """As `pool.score`, but the rows of a group need not stand beside each other."""
    if pool.unit() != "group":
        return pool.score(items)
    groups: dict[str, list[int]] = {}
    for position, (prompt, _, row) in enumerate(items):
        groups.setdefault(content_id(prompt, row), []).append(position)
    order = [position for group in groups.values() for position in group]
    verdicts = dict(zip(order, pool.score([items[position] for position in order]), strict=True))
    return [verdicts[position] for position in range(len(items))]


def _counted(fields: dict, verdict: Verdict, correctness: Correctness) -> dict:
    """The row with its reward and reason, counted as training would count them."""
    is_truncated = fields.get("finish_reason") == "length"
    is_wrong = is_truncated and correctness.truncated == "wrong" and not verdict.is_fault
    reward = correctness.reward(verdict.reward, is_truncated=is_truncated)
    return fields | {"reward": reward, "reason": "truncated" if is_wrong else verdict.reason}


def _first_problem(task: Task) -> Problem | None:
    return next((problems[0] for problems in (task.train, task.validation, task.test) if problems), None)


def read_item(kind: TaskKind, fields: dict, where: str) -> Item | UnusableRow:
    """What the pool takes, or why this row can have no verdict (an empty answer, say)."""
    completion = fields.get("completion")
    if not isinstance(completion, str):
        found = f"it is {completion!r}" if "completion" in fields else f"the row has {sorted(fields)}"
        raise ValueError(f"{where}: 'completion' must be the model's text; {found}")
    data = {name: value for name, value in fields.items() if name not in OWN_FIELDS}
    try:
        return _prompt(kind, data, where), completion, kind.read_row(data, where)
    except UnusableRow as error:
        return error


def _prompt(kind: TaskKind, data: dict, where: str) -> Prompt:
    """The prompt that training would give the reward; empty if the row has none, which a reward may do without."""
    try:
        return kind.read_prompt(data, where)
    except ValueError:
        if any(data.get(name) for name in PROMPT_FIELDS):
            raise
        return ""


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
