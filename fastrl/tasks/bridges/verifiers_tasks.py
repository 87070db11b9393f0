"""Tasks of the verifiers library, 0.4 or later (`verifiers.v1`).

    verifiers:my_taskset                 a module beside the config, or an installed package
    verifiers:my_taskset?num_tasks=100   with fields of its TasksetConfig

A taskset whose module brings no `Env` is single-turn: its tasks' rewards judge completions. Any other is an
environment. Of ten tasks in the taskset's order, eight are training problems, one validates, one tests, the same
whatever the counts. What needs a sandbox is refused: tools, containers, hooks and rewards that take a runtime.
"""

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..problem import Problem, Prompt, TaskKind, content_id, with_different_ids
from ..verifier.verdict import describe
from .verifiers_play import MultiTurn, Play, SingleTurn, Source, load, seats_of, task_of, text_of

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

DEFAULT_SIZE = 1000  # problems of a split that asks for all of an endless taskset
_PLACES = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}  # of ten


def verifiers_kind(name: str, reward_folder: str = "") -> TaskKind:
    """The task of one environment. ValueError where it cannot be loaded or needs what is not here."""
    source = Source.of(name, reward_folder)
    with _told(name):
        env = load(source)
    check_playable(env, name)
    is_single = type(env).__name__ == "SingleAgentEnv"

    def generate(config: "TaskConfig", split: str) -> list[Problem]:
        with _told(name):
            return generate_problems(env, split, getattr(config, f"num_{split}"))

    return TaskKind(
        reward=SingleTurn(source) if is_single else MultiTurn(source),
        read_prompt=partial(read_prompt, env=env),
        read_row=partial(read_row, env=env),
        template="chat",
        packages=("verifiers",),
        module=source.module,
        generate=generate,
    )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What a taskset raises, as a ValueError that names it."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # its author's, whatever it is
        raise ValueError(f"task 'verifiers:{name}' cannot be loaded: {describe(error)}") from error


def check_playable(env: Any, name: str) -> None:
    """ValueError for an environment that needs more than texts."""
    from verifiers.v1 import Task
    from verifiers.v1.utils.decorators import discover_decorated

    kind = type(env.taskset).task_type()
    task = kind.__new__(kind)
    task.config = env.taskset.config.task
    takes_runtime = [fn.__name__ for hook in ("reward", "metric") for fn in task.hooks(hook) if _needs_runtime(fn)]
    needs = {
        f"has {len(seats_of(env))} agents": len(seats_of(env)) != 1,
        "has tools": bool(env.taskset.toolsets(env.taskset.config) or kind.toolsets(task.config)),
        "needs a container": kind.NEEDS_CONTAINER,
        "prepares a runtime": kind.setup is not Task.setup or kind.finalize is not Task.finalize,
        f"has rewards or metrics that take a runtime ({', '.join(takes_runtime)})": bool(takes_runtime),
        "has stop or intercept hooks": bool(task.hooks("stop") or discover_decorated(task, "intercept")),
    }
    if found := [what for what, is_so in needs.items() if is_so]:
        raise ValueError(
            f"task 'verifiers:{name}' {' and '.join(found)}; fastrl plays environments of one agent by texts alone"
        )


def _needs_runtime(function: Any) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def generate_problems(env: Any, split: str, count: int) -> list[Problem]:
    """The first `count` tasks of a split; 0: all, or 1000 of an endless taskset."""
    tasks = (task for task in env.taskset if task.data.idx % 10 in _PLACES[split])
    if env.taskset.INFINITE or count:
        tasks = islice(tasks, count or DEFAULT_SIZE)
    problems = []
    for task in tasks:
        row = {"task": task.data.model_dump(mode="json", exclude_defaults=True)}
        prompt = prompt_of(env, row["task"])
        problems.append(Problem(content_id(prompt, row), prompt, row, f"task {task.data.idx}"))
    return with_different_ids(problems)


def prompt_of(env: Any, data: dict) -> Prompt:
    """What the model reads first: text, or messages where there is a system prompt.

    Where a task has no prompt, the environment opens the conversation, and is run up to there: ValueError where that
    says nothing, or fails.
    """
    task = task_of(env, data).data
    if task.prompt is None:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own event loop runs in this one
            messages = [{"role": "user", "content": thread.submit(_opening, env, data).result()}]
    elif isinstance(task.prompt, str):
        messages = [{"role": "user", "content": task.prompt}]
    else:
        messages = [{"role": message.role, "content": text_of(message)} for message in task.prompt]
    if task.system_prompt:
        return [{"role": "system", "content": task.system_prompt}, *messages]
    return messages[0]["content"] if len(messages) == 1 else messages


def _opening(env: Any, data: dict) -> str:
    play = Play(env, data)
    try:
        said = play.next_request()
    except Exception as error:  # the environment's own
        raise ValueError(f"the environment fails before the model's first turn: {describe(error)}") from error
    finally:
        play.close()
    if not said:
        raise ValueError(f"the environment says nothing before the model's first turn, and {data!r:.80} has no prompt")
    return said


def read_row(fields: dict, where: str, *, env: Any) -> dict:
    """The data of a task, in the fields of a row or in its field `task`; ValueError where they are not."""
    try:
        return {"task": task_of(env, fields.get("task", fields)).data.model_dump(mode="json", exclude_defaults=True)}
    except ValueError as error:
        raise ValueError(f"{where}: not the data of this taskset's tasks: {error}") from error


def read_prompt(fields: dict, where: str, *, env: Any) -> Prompt:
    """As `prompt_of`."""
    return prompt_of(env, read_row(fields, where, env=env)["task"])
