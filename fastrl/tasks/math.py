r"""Mathematics with a final answer: GSM8K, MATH, AMC, AIME and whatever has `problem` and `answer`.

The reward is 1.0 when the answer that the completion marks as final (`answers.extract_answer`) has exactly the value of
the gold answer (`equality.is_equal`), else 0.0. There is no format reward and no partial credit.
"""

from .answers import MAX_LENGTH, extract_answer, normalise
from .problem import Prompt, Score, TaskKind
from .rows import UnusableRow, require_prompt, require_text
from .templates import MATH_INSTRUCTION


class MathReward:
    """`reward(prompt, completion, answer=gold)`.

    reason: ok | empty | no answer (nothing boxed) | too long | different | error (in the symbolic comparison).
    """

    def prepare(self) -> None:
        """Import what the symbolic comparison needs, so that the first completion does not pay for it."""
        import logging

        import math_verify  # noqa: F401

        # Its only warning says that its own timeout is off; the pool has one that also stops C code.
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def __call__(self, prompt: str, completion: str, *, answer: str) -> Score:
        if not completion.strip():
            return Score(0.0, "empty")
        found = extract_answer(completion)
        if found is None:
            return Score(0.0, "no answer")
        if len(found) > MAX_LENGTH:
            return Score(0.0, "too long")
        from .equality import is_equal

        try:
            is_correct = is_equal(answer, found)
        except (MemoryError, RecursionError, ImportError):
            raise  # the pool's to name: no fault of the text
        except Exception as error:  # sympy raises nearly everything on text that is not mathematics
            return Score(0.0, f"error: {type(error).__name__}")
        return Score(float(is_correct), "ok" if is_correct else "different", normalise(found))


def read_prompt(fields: dict, where: str) -> Prompt:
    """The question: `problem`, `question` or `prompt`; text, or messages of a chat."""
    return require_prompt(fields, ("problem", "question", "prompt"), where)


def read_row(fields: dict, where: str) -> dict:
    r"""The gold answer: `answer`, of which only what follows the last `####` counts (GSM8K's original files)."""
    answer = require_text(fields, ("answer",), where)
    answer = answer.rpartition("####")[2].strip()
    if not normalise(answer) or len(answer) > MAX_LENGTH:
        raise UnusableRow(
            f"{where}: 'answer' must be 1 to {MAX_LENGTH} characters of mathematics, found {answer[:80]!r}"
        )
    return {"answer": answer}


MATH = TaskKind(
    reward=MathReward(), read_prompt=read_prompt, read_row=read_row, template="qwen", instruction=MATH_INSTRUCTION
)
