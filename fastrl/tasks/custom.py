"""A user's own reward: `module:function`, or an environment: `module:class`, over JSON lines. Or one that was given as
a Python object, `python:<name>` (`given`).

    def reward(prompt, completion, **row) -> float                 # judges one completion
    def reward(prompt, completions, **row) -> list[float]          # judges all completions of a prompt at once
    def reward(prompts, completions, **columns) -> list[float]     # TRL's (`trl`)
    async def reward(…)                                            # any of these, awaited in the worker
    class Game: reset(prompt, **row), step(text), score()          # an `Environment`; it is made without arguments

`row` holds every field of the dataset row besides the prompt. The module is imported in the verifier workers only; it
is looked for beside the config file, then in the current directory, then on sys.path.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .problem import Environment, Prompt, TaskKind
from .rows import PROMPT_FIELDS, require_prompt
from .signatures import is_environment
from .trl import adapted

PYTHON = "python:"  # begins the name of a reward that was given as an object


@dataclass(frozen=True)
class CustomReward:
    """A reward that calls `module:function`. The module is imported on first use, not when this is made or pickled.

    An environment cannot be called; a worker asks for it by `__wrapped__`.

    folder: where the module lies; empty: in the current directory or on sys.path.
    """

    name: str
    folder: str = ""

    def prepare(self) -> None:
        """Import the function now; ImportError, AttributeError or whatever the module raises."""
        prepared(_load(self.name, self.folder))

    @property
    def __wrapped__(self) -> Callable | Environment:
        """The function, whose signature is the reward's: so `inspect.signature` sees whether it judges groups; or the
        environment."""
        return _load(self.name, self.folder)

    def __call__(self, /, *args, **row):
        return self.__wrapped__(*args, **row)


def custom_kind(name: str, folder: str = "") -> TaskKind:
    """The task of a user's reward; ValueError when `name` cannot be `module:function`. folder: looked into first."""
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"task {name!r}: expected module:function, such as my_reward:reward")
    return kind_of(CustomReward(name, home_of(module, folder)))


def kind_of(reward: Callable) -> TaskKind:
    """The task of a reward over anybody's rows."""
    return TaskKind(reward=reward, read_prompt=read_prompt, read_row=read_row, template="none")


def given_kind(name: str, given: Mapping[str, Callable]) -> TaskKind:
    """The task of a reward that was given under this name. ValueError where none was."""
    if name not in given:
        raise ValueError(
            f"{name!r} is a Python object that was given to a run: give it again, as train(config, resume=True, "
            f"reward={name.removeprefix(PYTHON)}) or evaluate(config, reward={name.removeprefix(PYTHON)})"
        )
    return kind_of(given[name])


def made(found: object) -> Callable | Environment:
    """A function as it is, in TRL's signature adapted; of a class an object. TypeError for anything else."""
    if isinstance(found, type):
        found = found()
    if not callable(found) and not is_environment(found):
        raise TypeError(f"{found!r} is not a function or a class")
    return found if is_environment(found) else adapted(found)


def prepared(reward: Callable | Environment) -> Callable | Environment:
    """The same, when it has done what it wants to have done before any work."""
    getattr(reward, "prepare", lambda: None)()
    return reward


def home_of(module: str, folder: str = "") -> str:
    """The absolute path of `folder`, or else of the current directory, if the module lies there; else empty."""
    top = module.partition(".")[0]
    places = [Path(place).expanduser().absolute() for place in (folder, os.getcwd()) if place]
    return next((str(p) for p in places if (p / f"{top}.py").is_file() or (p / top).is_dir()), "")


def read_prompt(fields: dict, where: str) -> Prompt:
    """The question: `prompt`, `problem` or `question`, whichever comes first; text, or messages of a chat."""
    return require_prompt(fields, PROMPT_FIELDS, where)


def read_row(fields: dict, where: str) -> dict:
    """Every field but the prompt, and an empty `prompt`. ValueError for `completion`, which only the model writes."""
    if "completion" in fields:
        raise ValueError(f"{where}: field 'completion' is what the model writes; rename it in the data")
    prompt_field = next((name for name in PROMPT_FIELDS if fields.get(name)), None)
    return {name: value for name, value in fields.items() if name not in (prompt_field, "prompt")}


@cache
def _load(name: str, folder: str) -> Callable | Environment:
    module_name, _, function_name = name.partition(":")
    if home := folder or home_of(module_name):
        sys.path.insert(0, home)
    function = getattr(importlib.import_module(module_name), function_name)
    if not callable(function):
        raise TypeError(f"{name} is {function!r}, not a function or a class")
    return made(function)
