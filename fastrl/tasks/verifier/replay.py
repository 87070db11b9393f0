"""A conversation with an environment, played from its beginning: what a worker does for a turn of the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..problem import Environment, Prompt, Score
from .verdict import Verdict, fault, plain, shown, verdict_of

MAX_REPLY = 100_000  # characters


@dataclass(frozen=True, slots=True)
class Played(Verdict):
    """The verdict on a conversation so far, the reply to its last turn, and whether it is over; turns as in `Score`."""

    reply: str = ""
    is_done: bool = False
    turns: tuple[float, ...] = ()


def replay(environment: Environment, prompt: Prompt, texts: list[str], replies: Sequence[str], row: dict) -> Verdict:
    """What `environment` makes of the texts. replies: what it said to the first of them when these were played before.

    A fault for what is no answer, and for one that differs from before.
    """
    environment.reset(prompt, **row)
    reply, is_done = "", False
    for number, text in enumerate(texts):
        answer = environment.step(text)
        if not _is_answer(answer):
            return fault(f"step returned {shown(answer)}; expected (reply, is_done), text and a bool")
        reply, is_done = plain(answer[0], MAX_REPLY), bool(answer[1])
        if number < len(replies) and (is_done or reply != replies[number]):
            said = "is the end" if is_done else f"is {shown(reply)}"
            return fault(
                f"it is not a function of its row and the texts: reply {number + 1} was {shown(replies[number])} and "
                f"{said} when the conversation is played again; draw what is random from a seed in the row"
            )
    score = environment.score()
    verdict = verdict_of(score, texts[-1] if texts else "")
    if verdict.is_fault:
        return fault(f"score {verdict.reason}")
    turns = score.turns if isinstance(score, Score) else ()
    if turns and not _are_numbers(turns, len(texts)):
        return fault(f"score gave turns = {shown(turns)}; expected a finite number for each of {len(texts)} turns")
    found = {"answer": verdict.answer, "reply": reply, "is_done": is_done, "turns": tuple(map(float, turns))}
    return Played(verdict.reward, verdict.reason, **found)


def _are_numbers(turns: object, count: int) -> bool:
    is_row = isinstance(turns, tuple | list) and len(turns) == count
    return is_row and all(isinstance(turn, int | float) and math.isfinite(turn) for turn in turns)


def _is_answer(answer: object) -> bool:
    is_pair = isinstance(answer, tuple | list) and len(answer) == 2
    return is_pair and isinstance(answer[0], str) and type(answer[1]).__name__ in ("bool", "bool_")
