"""Rewards given as Python objects: `train(config, reward=function)`, from a module, a script or a cell of a notebook.

A config cannot hold them, so it holds their names, `python:<name>`: a run is resumed, or its model evaluated, by giving
them again. They go to the verifier's workers by cloudpickle: by reference where a worker can import them, by value
otherwise (`__main__`, closures, lambdas), with the globals that they use.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import cloudpickle

from .custom import PYTHON, made, prepared
from .reward_rules import AS_IT_IS

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

Given = Callable | Sequence[Callable] | Mapping[Callable, float]


class GivenReward:
    """A function, a callable object, an environment, or a class of either, which a worker makes without arguments."""

    def __init__(self, name: str, given: Any):
        self.name, self.given = name, given

    def __reduce__(self) -> tuple:
        return _unpickled, (self.name, cloudpickle.dumps(self.given))

    def prepare(self) -> None:
        """Make it, in a worker, and do what it wants to have done before."""
        self.__wrapped__ = prepared(made(self.given))

    def __call__(self, /, *args, **row):
        return self.__wrapped__(*args, **row)


def _unpickled(name: str, data: bytes) -> GivenReward:
    return GivenReward(name, cloudpickle.loads(data))


def with_given(task: "TaskConfig", given: Given | None) -> tuple["TaskConfig", dict[str, GivenReward]]:
    """The config that names what was given, and that by name. None: nothing was given.

    given: one reward; several, whose sum is the reward; or several with their weights. The first is the task's own: it
    alone says what is correct in evaluations. ValueError for what is no reward or cannot be sent to a worker, and for a
    task that brings a reward.
    """
    if given is None:
        return task, {}
    if task.name != type(task).name and not task.name.startswith(PYTHON):
        raise ValueError(f"task.name = {task.name!r} brings a reward, and another was given: leave one of them out")
    weights = _weights(given)
    names = _names([reward for reward, _ in weights])
    found = {name: GivenReward(name, reward) for name, (reward, _) in zip(names, weights, strict=True)}
    for (name, reward), (_, weight) in zip(found.items(), weights, strict=True):
        _check(name, reward)
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise ValueError(f"reward {name} has the weight {weight!r}: expected a number")
    own, *others = zip(names, (float(weight) for _, weight in weights), strict=True)
    kept = {n: w for n, w in task.rewards.items() if not n.startswith(PYTHON) and n != AS_IT_IS}
    rewards = ({AS_IT_IS: own[1]} if own[1] != 1 else {}) | kept | dict(others)
    return replace(task, name=own[0], rewards=rewards), found


def _weights(given: Given) -> list[tuple[Any, float]]:
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        pairs = [(reward, 1.0) for reward in (given if isinstance(given, list | tuple) else [given])]
    if not pairs:
        raise ValueError("reward is empty: expected a function, an environment, or several functions")
    return pairs


def _names(rewards: Sequence[Any]) -> list[str]:
    """python:<name>, with a number behind those that several have."""
    seen: Counter[str] = Counter()
    names = []
    for reward in rewards:
        inner = getattr(reward, "func", reward)  # of functools.partial
        name = getattr(inner, "__name__", type(inner).__name__).strip("<>")
        seen[name] += 1
        names.append(f"{PYTHON}{name}" if seen[name] == 1 else f"{PYTHON}{name}-{seen[name]}")
    return names


def _check(name: str, reward: GivenReward) -> None:
    if not callable(reward.given) and not hasattr(reward.given, "step"):
        raise ValueError(f"reward {reward.given!r}: expected a function, an environment, or several functions")
    try:
        cloudpickle.dumps(reward.given)
    except Exception as error:  # whatever the objects raise that it holds
        raise ValueError(
            f"reward {name} cannot be sent to the verifier's workers ({type(error).__name__}: {error}): make what it "
            "holds inside of the function"
        ) from error
