"""What the signature of a reward says: what it judges at once, whose conventions it follows, whether it is awaited.

reward(prompt, completion, **row)              one completion
reward(prompt, completions, **row)             all completions of a prompt
reward(prompts, completions, **columns)        TRL's: the same, with lists for everything (`trl`)
async def reward(…)                            any of them: awaited in the worker
class with reset, step, score                  an environment
"""

import inspect
from collections.abc import Callable


def is_environment(reward: object) -> bool:
    """Whether it has the methods of an environment."""
    return all(callable(getattr(reward, name, None)) for name in ("reset", "step", "score"))


def judges_groups(reward: Callable) -> bool:
    """Whether the reward's second parameter is `completions`. TypeError if another parameter has that name."""
    names = _parameters(reward)
    if "completions" not in names:
        return False
    if names[1:2] != ["completions"] or "completion" in names:
        raise TypeError(
            "expected reward(prompt, completion, **row), or reward(prompt, completions, **row) for one that judges "
            f"all completions of a prompt at once; found ({', '.join(names)})"
        )
    return True


def is_of_trl(reward: Callable) -> bool:
    """Whether it has TRL's signature: `completions` beside `prompts`, or before anything that would be one prompt."""
    names = _parameters(reward)
    is_first = names[:1] == ["completions"] and not {"prompt", "completion"} & set(names)
    return "completions" in names and ("prompts" in names or is_first)


def is_async(reward: Callable) -> bool:
    """Whether calls of it are awaited: an `async def`, an object with an async `__call__`, or one that says so itself
    with an attribute `is_async`."""
    said = getattr(reward, "is_async", None)
    if said is not None:
        return bool(said)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
        return True
    inner = getattr(reward, "__wrapped__", None)
    return inner is not None and is_async(inner)


def _parameters(reward: Callable) -> list[str]:
    try:
        return list(inspect.signature(reward).parameters)
    except ValueError:  # a function written in C does not tell
        return []
