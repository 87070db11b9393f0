"""An environment of the verifiers library, played with texts that somebody else has sampled.

The library lets a program, the harness, talk to a model in a sandbox, the runtime, and scores the trace of it. Here
there is neither: `Env.run` is started with a seat for its only agent, stops wherever it waits for the model, and goes
on with the text that it is given. When no more text comes, it is told that the run was ended by a limit. Then the
task's own rewards score the trace.
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl

from ..custom import home_of
from ..problem import Prompt, Score


@dataclass(frozen=True)
class Source:
    """Which environment: an installed taskset or a module, options of its taskset, the folder where it may lie."""

    taskset: str
    options: tuple[tuple[str, str], ...] = ()
    folder: str = ""

    @classmethod
    def of(cls, text: str, reward_folder: str) -> "Source":
        """From `<taskset>` or `<taskset>?option=value&…`. ValueError where no taskset is named, and for what are no
        options of one."""
        taskset, _, options = text.partition("?")
        if not taskset:
            raise ValueError(f"task 'verifiers:{text}' names no taskset: expected verifiers:<taskset>?option=value&…")
        try:
            pairs = tuple(parse_qsl(options, keep_blank_values=True, strict_parsing=bool(options)))
        except ValueError as error:
            raise ValueError(f"task 'verifiers:{text}': {error}; expected verifiers:<taskset>?option=value&…") from None
        names = ["id", *(name for name, _ in pairs)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"task 'verifiers:{text}' says twice what {twice!r} is: leave one of them out")
        source = cls(taskset, pairs)
        return replace(source, folder=home_of(source.module, reward_folder))

    @property
    def module(self) -> str:
        """What the library imports: of `owner/name@version` as of a bare name."""
        return self.taskset.rpartition("/")[2].partition("@")[0].replace("-", "_").lower()


@dataclass(frozen=True)
class SingleTurn:
    """The reward of an environment in which the model answers once: the sum of the task's weighted rewards."""

    source: Source

    def prepare(self) -> None:
        """Import the library and the environment."""
        load(self.source)

    def __call__(self, prompt: Prompt, completion: str, *, task: dict) -> Score:
        """task: the task's data. reason: what each reward of the task gave."""
        play = Play(load(self.source), task)
        try:
            play.next_request()
            play.say(completion)
            return play.score()
        finally:
            play.close()


class MultiTurn:
    """The same as an environment that replies to turns."""

    def __init__(self, source: Source):
        self.source = source
        self._play: Play | None = None

    def prepare(self) -> None:
        """Import the library and the environment."""
        load(self.source)

    def reset(self, prompt: Prompt, *, task: dict) -> None:
        """task: the task's data."""
        if self._play:
            self._play.close()
        self._play = Play(load(self.source), task)
        self._play.next_request()

    def step(self, text: str) -> tuple[str, bool]:
        self._play.say(text)
        reply = self._play.next_request()
        return reply or "", reply is None

    def score(self) -> Score:
        """Ends the conversation: verifiers scores whole runs. A replay asks for it once, at its end."""
        return self._play.score()


class Play:
    """One episode of an environment, held wherever it waits for the model."""

    def __init__(self, env: Any, data: dict):
        """data: of one of its tasks, as JSON."""
        task = task_of(env, data)
        self.traces: list[Any] = []
        self._is_over = False  # no more text will come
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self._said: asyncio.Queue[str | None] = asyncio.Queue()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._episode = self._loop.create_task(self._run(env, task))

    async def _run(self, env: Any, task: Any) -> None:
        from verifiers.v1 import Episode, TraceTask

        seats = SimpleNamespace(**{name: _Seat(self, name) for name in seats_of(env)})
        await env.setup(seats)
        await env.run(task, seats)
        kind = TraceTask(type=type(task).__name__, data=task.data)
        await env.finalize(task, Episode(task=kind, traces=self.traces))

    def next_request(self) -> str | None:
        """What the environment says before the model's next turn; None when it has ended. Raises what that raised."""
        asked = self._loop.create_task(self._asked.get())
        self._loop.run_until_complete(asyncio.wait({asked, self._episode}, return_when=asyncio.FIRST_COMPLETED))
        if asked.done():
            return asked.result()
        asked.cancel()
        self._episode.result()
        return None

    def say(self, text: str) -> None:
        """The model's next turn."""
        self._said.put_nowait(text)

    async def answer(self, request: str) -> str | None:
        """For the seat: the model's answer; None when no more will come, however often it asks."""
        if self._is_over:
            return None
        self._asked.put_nowait(request)
        text = await self._said.get()
        self._is_over = text is None
        return text

    def score(self) -> Score:
        """End the episode; the sum of all rewards, and one by one in the reason."""
        if not self._episode.done():
            self._said.put_nowait(None)
        self._loop.run_until_complete(self._episode)
        found = [(name, reward) for trace in self.traces for name, reward in trace.rewards.items() if reward]
        reason = ", ".join(f"{name} {reward.score:g}" for name, reward in found)
        return Score(sum(reward.value for _, reward in found), reason or "no reward")

    def close(self) -> None:
        """Leave nothing of it running."""
        self._episode.cancel()
        with suppress(BaseException):  # whatever it says to its end
            self._loop.run_until_complete(self._episode)
        self._runner.close()  # what else the environment has started, too


class _Seat:
    """In the place of `verifiers.v1.Agent`."""

    def __init__(self, play: Play, name: str):
        self._play, self.name, self.trainable = play, name, True

    async def run(self, task: Any, **_: Any) -> Any:
        """One turn, as a single-agent environment takes it."""
        async with self.interaction(task) as interaction:
            await interaction.turn()
        return interaction.trace

    @asynccontextmanager
    async def interaction(self, task: Any, **_: Any) -> AsyncIterator["_Interaction"]:
        interaction = _Interaction(self._play, task)
        yield interaction
        interaction.trace.stop("user_closed")
        await task.score(interaction.trace)
        self._play.traces.append(interaction.trace)


class _Interaction:
    """In the place of `verifiers.v1.Interaction`: each turn is a text that `Play.say` was given."""

    def __init__(self, play: Play, task: Any):
        from verifiers.v1 import AgentConfig, AgentInfo, SystemMessage, Trace, TraceTask, UserMessage
        from verifiers.v1.state import state_cls

        self._play = play
        kind = TraceTask(type=type(task).__name__, data=task.data)
        self.trace = Trace(task=kind, state=state_cls(type(task))(), agent=AgentInfo(config=AgentConfig()))
        data = task.data
        prompt = [UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else data.prompt or []
        for message in [*([SystemMessage(content=data.system_prompt)] if data.system_prompt else []), *prompt]:
            self._add(message)

    async def turn(self, message: Any = None) -> Any:
        """The segment with the model's answer, or one that is `terminated`."""
        from verifiers.v1 import AssistantMessage, Segment, UserMessage

        messages = [UserMessage(content=message)] if isinstance(message, str) else list(message or [])
        text = await self._play.answer("\n\n".join(text_of(one) for one in messages))
        if text is None:
            self.trace.stop("max_turns")
            return Segment(messages=[], terminated=True)
        for one in messages:
            self._add(one)
        self._add(AssistantMessage(content=text), sampled=True)
        return Segment(messages=[self.trace.nodes[-1].message])

    def _add(self, message: Any, *, sampled: bool = False) -> None:
        from verifiers.v1 import MessageNode

        nodes = self.trace.nodes
        nodes.append(MessageNode(parent=len(nodes) - 1 if nodes else None, message=message, sampled=sampled))


def text_of(message: Any) -> str:
    """Of a message, typed or as a dictionary. ValueError where it is not text alone."""
    content = message["content"] if isinstance(message, dict) else message.content
    if not isinstance(content, str):
        raise ValueError(f"a message that is not text cannot be shown to the model: {content!r:.80}")
    return content


def task_of(env: Any, data: dict) -> Any:
    """The task of these data, with the environment's rewards."""
    kind = type(env.taskset).task_type()
    return kind(kind.data_type().model_validate(data), env.taskset.config.task)


def seats_of(env: Any) -> list[str]:
    """The names of the agents that it declares."""
    from verifiers.v1.configs.agent import agent_config_fields

    return list(agent_config_fields(env.config))


@cache
def load(source: Source) -> Any:
    """The `verifiers.v1.Env`. ValueError where the library or the environment is not there, or an option is not."""
    if source.folder and source.folder not in sys.path:
        sys.path.insert(0, source.folder)
    try:
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
    except ImportError as error:
        raise ValueError(
            f"tasks named verifiers:<taskset> need: pip install '.[verifiers]' in fastrl's clone ({error})"
        ) from error
    try:
        config = loaders.resolve_env_config({"taskset": {"id": source.taskset, **dict(source.options)}})
        return loaders.load_environment(config)
    except (ImportError, AttributeError, TypeError) as error:
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise ValueError(f"verifiers finds no taskset {source.taskset!r}: {error}{why}") from error
