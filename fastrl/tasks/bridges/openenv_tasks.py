"""Environments of OpenEnv: `openenv:<module>:<app>`, or `openenv:http://…` for a server that runs already.

A module is served by a process of each verifier worker and ends with it; a server by its address is shared, and must
take as many sessions at once as there are workers, and one more.

A problem is a seed: its prompt is what the environment answers to `reset(seed=…)`. A turn of the model is an action,
the observation is the reply, the reward is the sum of those of all steps. An observation with one text among its fields
is shown as that text, any other as JSON. An environment that does not reset to the same state from the same seed cannot
be played again, and its conversations are faults.
"""

import json
import os
import re
import sys
from typing import TYPE_CHECKING

from ..custom import home_of
from ..problem import Problem, Prompt, Score, TaskKind, content_id, with_different_ids
from ..rows import PROMPT_FIELDS, require_prompt
from ..verifier.verdict import describe
from .openenv_server import InvalidAction, Session

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

DEFAULT_SIZE = 1000  # problems of a split that asks for all: seeds never end
_SPLIT_SEED = {"train": 0, "validation": 1, "test": 2}
_SEED_STRIDE = 100_000  # seeds of a split


class OpenEnvGame:
    """The environment, in a worker: one session, reset for each conversation.

    reason: ok | invalid action. A server that dies ends its worker; a fresh one plays the conversation again.
    """

    def __init__(self, target: str, folder: str = ""):
        self.target, self.folder = target, folder
        self._session: Session | None = None

    def prepare(self) -> None:
        """Start or reach the server."""
        self._session = Session(self.target, self.folder)

    def reset(self, prompt: Prompt, *, reset: dict, opening: str | None = None) -> None:
        """reset: arguments of the environment's `reset`. opening: what it must answer to them; None: anything."""
        self._rewards: list[float] = []
        self._reason = "ok"
        found = shown(self._asked(self._session.reset, **reset)["observation"])
        if opening is not None and found != opening:
            raise ValueError(
                f"reset(**{reset}) is not a function of its arguments: it answered {opening!r:.80}, now {found!r:.80}"
            )

    def step(self, text: str) -> tuple[str, bool]:
        try:
            found = self._asked(self._session.step, text)
        except InvalidAction as error:
            self._reason = "invalid action"
            self._rewards.append(0.0)
            return str(error), True
        self._rewards.append(float(found.get("reward") or 0.0))
        return shown(found["observation"]), bool(found.get("done"))

    def score(self) -> Score:
        """The sum of the steps' rewards, and each by itself."""
        return Score(sum(self._rewards), self._reason, turns=tuple(self._rewards))

    def _asked(self, ask, *arguments, **named) -> dict:
        try:
            return ask(*arguments, **named)
        except OSError as error:
            print(f"verifier worker: openenv:{self.target}: {describe(error)}", file=sys.stderr, flush=True)
            os._exit(3)


def openenv_kind(target: str, reward_folder: str = "") -> TaskKind:
    """The task of one environment. ValueError for a name that is neither an address nor module:app."""
    is_address = re.match(r"https?://\S+$", target)
    module, _, app = target.partition(":")
    if not is_address and not (app.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(
            f"task 'openenv:{target}': expected openenv:<module>:<app>, such as openenv:my_env.server.app:app, or "
            "openenv:http://host:port"
        )
    folder = "" if is_address else home_of(module, reward_folder)

    def generate(config: "TaskConfig", split: str) -> list[Problem]:
        count = min(getattr(config, f"num_{split}") or DEFAULT_SIZE, _SEED_STRIDE)
        first = (config.seed * len(_SPLIT_SEED) + _SPLIT_SEED[split]) * _SEED_STRIDE
        return generate_problems(target, folder, range(first, first + count))

    return TaskKind(
        reward=OpenEnvGame(target, folder),
        read_prompt=lambda fields, where: require_prompt(fields, PROMPT_FIELDS, where),
        read_row=read_row,
        template="chat",
        module="" if is_address else module,
        generate=generate,
    )


def generate_problems(target: str, folder: str, seeds: range) -> list[Problem]:
    """One problem of each seed. ValueError where no server answers, or the environment ends before a turn."""
    problems = []
    try:
        with Session(target, folder) as session:
            for seed in seeds:
                found = session.reset(seed=seed)
                if found.get("done"):
                    raise ValueError(f"openenv:{target} is over after reset(seed={seed}): there is nothing to play")
                row = {"reset": {"seed": seed}, "opening": shown(found["observation"])}
                problems.append(Problem(content_id(row["opening"], row), row["opening"], row, f"seed {seed}"))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"openenv:{target} cannot be reset: {error}") from error
    return with_different_ids(problems)


def read_row(fields: dict, where: str) -> dict:
    """`reset`, the arguments of the environment's `reset`; ValueError where they are no JSON object."""
    arguments = fields.get("reset")
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: 'reset' must hold the arguments of the environment's reset, found {arguments!r}")
    return {"reset": arguments}


def shown(observation: dict) -> str:
    """An observation as the model reads it."""
    texts = [value for value in observation.values() if isinstance(value, str) and value]
    return texts[0] if len(texts) == 1 else json.dumps(observation, ensure_ascii=False)
