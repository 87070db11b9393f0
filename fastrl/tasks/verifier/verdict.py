"""What became of a completion, and how a verdict is made of whatever a reward returned or raised."""

import math
import numbers
from dataclasses import dataclass, field
from decimal import Decimal

from ..problem import Score

MAX_REASON = 500  # characters


@dataclass(frozen=True, slots=True)
class Verdict:
    """The reward of one completion and one word or phrase why.

    is_fault: the verifier itself failed, which says nothing about the completion; exactly then `reward` is None.
    answer: the completion's final answer, by which samples vote; None where there is none. parts: as in `Score`.
    """

    reward: float | None
    reason: str
    is_fault: bool = False
    answer: str | None = field(default=None, compare=False)
    parts: tuple[float, ...] = ()


def fault(reason: str) -> Verdict:
    """A verdict without a reward."""
    return Verdict(None, plain(reason), is_fault=True)


def verdict_of(returned: object, completion: str) -> Verdict:
    """The verdict for what a reward returned: a finite number of any library, or a Score; anything else is a fault."""
    score = returned if isinstance(returned, Score) else Score(returned, answer=completion.strip())
    value = score.reward
    try:
        # Numbers of numpy and torch, bool_ and arrays of one element included, become Python's.
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, numbers.Real | Decimal) and math.isfinite(float(number)):
            answer = None if score.answer is None else str(score.answer)
            return Verdict(float(number), plain(str(score.reason)), answer=answer, parts=score.parts)
    except (ValueError, OverflowError, RuntimeError):  # many elements; an integer beyond all floats
        pass
    return fault(f"returned {shown(value)}; expected a finite number such as 0.0 or 1.0")


def group_verdicts_of(returned: object, completions: list[str]) -> list[Verdict]:
    """One verdict for each completion of a group; the same fault for all where any of them has no number."""
    num = len(completions)
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # arrays of numpy and torch
    if not isinstance(values, list | tuple):
        return [fault(f"returned {shown(values)}; expected a list of {num} numbers, one for each completion")] * num
    if len(values) != num:
        return [fault(f"returned {len(values)} numbers for {num} completions; expected one for each")] * num
    verdicts = [verdict_of(value, completion) for value, completion in zip(values, completions, strict=True)]
    for position, verdict in enumerate(verdicts, start=1):
        if verdict.is_fault:
            return [fault(f"for completion {position} of {num} {verdict.reason}")] * num
    return verdicts


def describe(error: BaseException) -> str:
    """The exception in one line, also when its text cannot be made."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return name
    return f"{name}: {text}" if text else name


def shown(value: object) -> str:
    """The value, shortened, and its type."""
    try:
        text = repr(value)
    except Exception:
        text = "what cannot be shown"
    return f"{plain(text)} ({type(value).__name__})"


def plain(text: str, most: int = MAX_REASON) -> str:
    """At most so many characters, and without what UTF-8 cannot write."""
    return text[:most].encode("utf-8", "backslashreplace").decode()
