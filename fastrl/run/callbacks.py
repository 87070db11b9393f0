"""What a program hears of a run that it starts: `train(config, callbacks=[…])`.

    class EarlyStop(Callback):
        def on_step(self, step):
            return "stop" if step.metrics["reward/mean"] > 0.9 else None

    train(config, callbacks=[EarlyStop(), lambda step: print(step.step, step.completions[0])])

Callbacks run on the main rank, in the order of the list, between two steps: the run waits for them. "stop" ends the
run after this step as if it had been the last: checkpoint, evaluation, files. `resume` goes on from there. An exception
ends the run as any error does, with a checkpoint of the last finished step (with several ranks the last one that is
there), and comes out of `train`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from fastrl.process.ranks import ALONE, Ranks
from fastrl.prompts.tokens import completion_texts
from fastrl.rollouts import Rollouts
from fastrl.tasks import Problem

Answer = Literal["stop"] | None


@dataclass(frozen=True)
class StepEnd:
    """A finished step: its metrics as in metrics.jsonl, and all its rollouts, of all ranks.

    rollouts.groups_R: the index of a rollout's problem in `problems`. end_ids: the tokens that end a completion and are
    no part of its text. Nothing of it may be written to.
    """

    step: int
    metrics: dict[str, float]
    problems: Sequence[Problem]
    rollouts: Rollouts
    tokenizer: PreTrainedTokenizerBase
    end_ids: Collection[int]

    @cached_property
    def completions(self) -> list[str]:
        """The text of each rollout's completion. Decoded when it is asked for."""
        return completion_texts(self.tokenizer, self.rollouts, self.end_ids)


class Callback:
    """Hears of a run. Override what is of interest; each method may return "stop"."""

    def on_step(self, step: StepEnd) -> Answer:
        """After each step, before its validation and its checkpoint."""

    def on_evaluation(self, name: str, evaluation: dict) -> Answer:
        """After each evaluation. name: of its file in eval/; evaluation: what stands there."""

    def on_checkpoint(self, step: int, folder: Path) -> Answer:
        """When a checkpoint, a Hugging Face folder, is on disk. Where this is overridden, the run waits for that."""

    def on_end(self, folder: Path) -> Answer:
        """When the run is over and all its files are written. folder: of the run."""


class Callbacks:
    """All callbacks of a run. Collective: where there are any, every rank has as many.

    has_stopped: whether one of them has asked for the end.
    """

    def __init__(self, callbacks: Sequence[Callback | Callable[[StepEnd], Answer]] = (), ranks: Ranks = ALONE):
        """A function is called after each step. ValueError for what is neither."""
        self._all = [_callback(one) for one in callbacks]
        self._ranks, self.has_stopped = ranks, False

    @property
    def hear_checkpoints(self) -> bool:
        return any(type(one).on_checkpoint is not Callback.on_checkpoint for one in self._all)

    def step(self, step: StepEnd) -> None:
        self._call(lambda one: one.on_step(step))

    def evaluation(self, name: str, evaluation: dict) -> None:
        self._call(lambda one: one.on_evaluation(name, evaluation))

    def checkpoint(self, step: int, folder: Path) -> None:
        self._call(lambda one: one.on_checkpoint(step, folder))

    def end(self, folder: Path) -> None:
        self._call(lambda one: one.on_end(folder))

    def _call(self, hear: Callable[[Callback], Answer]) -> None:
        if self._all:
            answers = self._ranks.on_main(lambda: [_checked(one, hear(one)) for one in self._all])
            self.has_stopped |= "stop" in answers


class _AfterStep(Callback):
    def __init__(self, function: Callable[[StepEnd], Answer]):
        self.on_step = function


def _callback(one: Callback | Callable[[StepEnd], Answer]) -> Callback:
    if isinstance(one, Callback):
        return one
    if isinstance(one, type) or not callable(one):
        raise ValueError(f"callbacks holds {one!r}; expected objects of a class of Callback, or functions of a step")
    return _AfterStep(one)


def _checked(one: Callback, answer: Answer) -> Answer:
    if answer is not None and not (isinstance(answer, str) and answer == "stop"):
        raise ValueError(f"{type(one).__name__} answered {answer!r:.80}; a callback returns 'stop' or None")
    return answer
