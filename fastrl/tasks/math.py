r"""Mathematics with a final answer: GSM8K, MATH, AMC, AIME and whatever has `problem` and `answer`.

The reward is 1.0 when the answer that the completion marks as final (`extraction.extract_answer`) has exactly the value
of the gold answer (`equality.is_equal`), else 0.0. There is no format reward and no partial credit.
"""

import re

from .math_answers.equality import is_equal, is_readable
from .math_answers.extraction import MAX_LENGTH, extract_answer, has_marked_answer
from .math_answers.notation import normalise
from .problem import Prompt, Score, TaskKind
from .rows import UnusableRow, require_prompt, require_text
from .templates import MATH_INSTRUCTION


class MathReward:
    """`reward(prompt, completion, answer=gold)`.

    reason: ok | empty | no answer (nothing boxed) | too long | different | error (in a computation).
    """

    def prepare(self) -> None:
        """Import what inexact numbers need, so that the first completion does not pay for it."""
        import mpmath  # noqa: F401

    def __call__(self, prompt: str, completion: str, *, answer: str) -> Score:
        if not completion.strip():
            return Score(0.0, "empty")
        found = extract_answer(completion)
        if found is None:
            return Score(0.0, "no answer")
        if len(found) > MAX_LENGTH:
            return Score(0.0, "too long")
        try:
            is_correct = is_equal(answer, found)
        except (MemoryError, RecursionError, ImportError):
            raise  # the pool's to name: no fault of the text
        except Exception as error:  # mpmath raises nearly everything on a domain that it does not expect
            return Score(0.0, f"error: {type(error).__name__}")
        return Score(float(is_correct), "ok" if is_correct else "different", normalise(found))


def read_prompt(fields: dict, where: str) -> Prompt:
    """The question: `problem`, `question` or `prompt`; text, or messages of a chat."""
    return require_prompt(fields, ("problem", "question", "prompt"), where)


def read_row(fields: dict, where: str) -> dict:
    r"""The gold answer: `answer`, or what it marks as final where it is a worked solution (GSM8K's `####`, a `\boxed`).

    Raises UnusableRow for prose that marks none: no completion could ever match it.
    """
    text = require_text(fields, ("answer",), where)
    answer = extract_answer(text) if has_marked_answer(text) else text.strip()
    if not answer or not normalise(answer) or len(answer) > MAX_LENGTH:
        raise UnusableRow(f"{where}: 'answer' must be 1 to {MAX_LENGTH} characters of mathematics, found {text[:80]!r}")
    if _is_prose(answer):
        raise UnusableRow(
            f"{where}: 'answer' is a text that marks no final answer (\\boxed{{…}}, '#### …', 'The answer is …'); "
            f"nothing could match it: {text[:80]!r}"
        )
    return {"answer": answer}


def _is_prose(answer: str) -> bool:
    r"""Whether unreadable mathematics stands among the words of a sentence, or there are too many words.

    Words in a `\text` are the author's choice and do not count.
    """
    bare = re.sub(r"\\text[a-z]*\s*\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}", " ", answer)
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", bare)
    if re.fullmatch(r"[a-zA-Z\s,.'()-]*", answer):
        return len(words) > 8
    is_sentence = re.match(r"[A-Z][a-z]+\s", answer) is not None
    return len(words) > (1 if is_sentence else 2) and not is_readable(answer)


MATH = TaskKind(
    reward=MathReward(),
    read_prompt=read_prompt,
    read_row=read_row,
    template="qwen",
    instruction=MATH_INSTRUCTION,
    packages=("mpmath",),
)
