"""What is audited: completions with their problems, from JSON lines as for `fastrl verify`, or from a run folder."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from fastrl.config.files import load_config
from fastrl.config.schema import TaskConfig, TrainConfig
from fastrl.records.jsonl import read_jsonl
from fastrl.tasks import TaskKind, find_kind, load_task
from fastrl.tasks.problem import Prompt, content_id
from fastrl.tasks.rows import UnusableRow, read_json_lines
from fastrl.tasks.verify import OWN_FIELDS, read_item


@dataclass(frozen=True)
class Completion:
    """group: of its problem. fields: all that is known of the problem, for a reference that reads other ones."""

    group: str
    prompt: Prompt
    text: str
    row: dict
    fields: dict
    where: str


def completions_of(input: Path, task: TaskConfig) -> tuple[TaskConfig, list[Completion]]:
    """The task that judges, and what it judges. `task.name` empty: the run's; its problems come from there anyway.

    FileNotFoundError, or ValueError for a file without task.name and for rows or rollouts that cannot be read.
    """
    if not input.is_dir():
        if not task.name:
            raise ValueError(f"--task is missing: which reward judges the completions of {input}?")
        task = replace(task, reward_folder=str(input.parent))
        return task, of_file(input, find_kind(task.name, task.reward_folder))
    trained = load_config(TrainConfig, input / "config.toml").task
    return replace(task, name=task.name or trained.name, reward_folder=trained.reward_folder), of_run(input, trained)


def of_run(folder: Path, task: TaskConfig) -> list[Completion]:
    """The rollouts that a run wrote, of all steps, behind their problems. ValueError for problems it does not know."""
    paths = sorted((folder / "rollouts").glob("step-*.jsonl.gz"))
    if not paths:
        raise FileNotFoundError(f"no rollouts in {folder / 'rollouts'}: a run writes them with run.scored_rollouts")
    problems = {p.id: p for p in load_task(task, splits=("train",)).train}
    found = []
    for path in paths:
        for row in read_jsonl(path):
            problem = problems.get(row["problem_id"])
            if problem is None:
                raise ValueError(
                    f"{path} has problem {row['problem_id']!r}, which the run's task does not hold any more"
                )
            fields = {"prompt": problem.prompt} | problem.row
            found.append(Completion(problem.id, problem.prompt, row["completion"], problem.row, fields, str(path)))
    return found


def of_file(path: Path, kind: TaskKind) -> list[Completion]:
    """Rows with `completion` and what the task needs; rows that lack that are left out. ValueError for a broken one."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file or run folder: {str(path)!r} (looked in {Path.cwd()})")
    found = []
    for where, fields in read_json_lines(path):
        item = read_item(kind, fields, where)
        if not isinstance(item, UnusableRow):
            prompt, text, row = item
            data = {name: value for name, value in fields.items() if name not in OWN_FIELDS}
            found.append(Completion(content_id(prompt, row), prompt, text, row, data, where))
    return found


def sampled(completions: Iterable[Completion], num_groups: int) -> list[Completion]:
    """Those of `num_groups` problems, a fixed random sample (0: all), the completions of each side by side."""
    groups: dict[str, list[Completion]] = {}
    for completion in completions:
        groups.setdefault(completion.group, []).append(completion)
    names = list(groups)
    if num_groups and num_groups < len(names):
        names = sorted(Random(0).sample(names, num_groups), key=names.index)
    return [completion for name in names for completion in groups[name]]
