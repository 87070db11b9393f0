"""A user's own reward: `module:function` over JSON lines.

    def reward(prompt, completion, **row) -> float

`row` holds every field of the dataset row besides the prompt. The module is imported in the verifier workers only; it
is looked for on sys.path and then in the current directory, so a `my_reward.py` beside the config works.
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from .problem import Score, TaskKind
from .rows import require_text

PROMPT_FIELDS = ("prompt", "problem", "question")


@dataclass(frozen=True)
class CustomReward:
    """Calls `module:function`, which it imports on first use: pickling it imports nothing."""

    name: str

    def prepare(self) -> None:
        """Import the function now; ImportError, AttributeError or whatever the module raises."""
        _load(self.name)

    def __call__(self, prompt: str, completion: str, **row) -> float | Score:
        return _load(self.name)(prompt, completion, **row)


def custom_kind(name: str) -> TaskKind:
    """The task of a user's reward; ValueError when `name` cannot be `module:function`."""
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"task {name!r}: expected module:function, such as my_reward:reward")
    return TaskKind(reward=CustomReward(name), read_prompt=read_prompt, read_row=read_row, template="none")


def read_prompt(fields: dict, where: str) -> str:
    """The question: `prompt`, `problem` or `question`, whichever comes first."""
    return require_text(fields, PROMPT_FIELDS, where)


def read_row(fields: dict, where: str) -> dict:
    """Every field but the prompt; `completion` is the model's and must not be in the data."""
    if "completion" in fields:
        raise ValueError(f"{where}: field 'completion' is what the model writes; rename it in the data")
    prompt_field = next((name for name in PROMPT_FIELDS if fields.get(name)), None)
    return {name: value for name, value in fields.items() if name != prompt_field}


@cache
def _load(name: str) -> Callable[..., float]:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    function = getattr(importlib.import_module(module_name), function_name)
    if not callable(function):
        raise TypeError(f"{name} is {function!r}, not a function")
    return function
