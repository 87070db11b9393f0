"""Rewards in TRL's signature, `reward(prompts, completions, **columns) -> list[float]`, as they are.

A group of ours is a batch of theirs: the prompt and every column of the row are repeated for each completion. Where the
prompt is a chat, so are the completions: [{"role": "assistant", "content": text}]. An entry None in what it returns
means that it does not apply to that completion. What a worker does not have is left out: `completion_ids`,
`trainer_state` and TRL's functions for logging keep the defaults that the function gives them.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from .problem import Prompt
from .signatures import is_async, is_of_trl

OURS = ("prompts", "completions")
NOT_HERE = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


@dataclass(frozen=True)
class TrlReward:
    """A function of TRL's as one that judges groups. TypeError for one that cannot do without what a worker lacks."""

    function: Callable

    def prepare(self) -> None:
        """What the function wants to have done before, and the check of its parameters."""
        getattr(self.function, "prepare", lambda: None)()
        parameters = inspect.signature(self.function).parameters
        if missing := [n for n in NOT_HERE if n in parameters and parameters[n].default is inspect.Parameter.empty]:
            raise TypeError(f"the reward asks for {missing[0]}, which verifier workers do not have: give it a default")

    @property
    def is_async(self) -> bool:
        return is_async(self.function)

    def __call__(self, prompt: Prompt, completions: list[str], /, **row):
        if taken := [name for name in OURS if name in row]:
            raise ValueError(f"the data has a column {taken[0]!r}, which TRL's rewards get from the trainer: rename it")
        is_chat = not isinstance(prompt, str)
        texts = [[{"role": "assistant", "content": text}] for text in completions] if is_chat else completions
        given = {"prompts": [prompt] * len(texts), "completions": texts}
        given |= {name: [value] * len(texts) for name, value in row.items()}
        parameters = inspect.signature(self.function).parameters.values()
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            given = {p.name: given[p.name] for p in parameters if p.name in given}
        return self.function(**given)


def adapted(reward: Callable) -> Callable:
    """The same, unless `signatures.is_of_trl` says that it is TRL's."""
    return TrlReward(reward) if is_of_trl(reward) else reward
