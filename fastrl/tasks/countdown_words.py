"""Countdown in words, for models that were pretrained: numbers of any size, + - * / and an answer at the end.

    Use the numbers 44, 19, 35, each exactly once, to make an expression that equals 98.

The last `<answer>…</answer>` of a completion is judged, exactly, in fractions; `= 98` at its end, × and ÷ are read.
Rows have `numbers`, or `nums` as in Jiayi-Pan/Countdown-Tasks-3to4, and `target`; without data, Countdown's own
problems are put into words.
"""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from . import countdown
from .problem import Problem, Score, TaskKind

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

INSTRUCTION = (
    "You may use + - * / and parentheses. Think step by step, then give the expression alone, without its value, "
    "like this: <answer>(1 + 2) * 3</answer>"
)
MAX_LENGTH = 200  # characters of an expression: its brackets nest too little to trouble Python's parser
OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")


def reward(prompt: str, completion: str, *, numbers: list[int], target: int) -> Score:
    """1.0 when the answer is an expression of exactly `numbers` that equals `target`.

    reason: ok | no answer | syntax | numbers (not each exactly once) | value (not the target, or divides by 0).
    """
    found = _ANSWER.findall(completion)
    if not found:
        return Score(0.0, "no answer")
    text = " ".join(found[-1].partition("=")[0].replace("×", "*").replace("÷", "/").split())
    used: list[int] = []
    try:
        value = _value(_parsed(text), used)
    except ZeroDivisionError:
        return Score(0.0, "value", text)
    except (SyntaxError, ValueError):
        return Score(0.0, "syntax")
    if sorted(used) != sorted(numbers):
        return Score(0.0, "numbers", text)
    return Score(1.0, "ok", text) if value == target else Score(0.0, "value", text)


def _parsed(text: str) -> ast.expr:
    """The syntax tree of an expression; nothing is run. SyntaxError or ValueError for anything else."""
    if len(text) > MAX_LENGTH or not _ALLOWED.fullmatch(text):
        raise ValueError(f"no arithmetic of at most {MAX_LENGTH} characters: {text[:40]!r}")
    return ast.parse(text, mode="eval").body


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of + - * / and whole numbers, which `used` collects. ValueError for another operator."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError(f"only + - * / between numbers, not {type(node).__name__}")


def read_prompt(fields: dict, where: str) -> str:
    """The question of a row."""
    row = countdown.read_row(fields, where)
    return in_words(row["numbers"], row["target"])


def in_words(numbers: list[int], target: int) -> str:
    """The question's text, as in the module's docstring."""
    listed = ", ".join(map(str, numbers))
    return f"Use the numbers {listed}, each exactly once, to make an expression that equals {target}."


def generate(config: "TaskConfig", split: str) -> list[Problem]:
    """Countdown's own problems, put into words."""
    return [replace(problem, prompt=in_words(**problem.row)) for problem in countdown.generate(config, split)]


COUNTDOWN_WORDS = TaskKind(
    reward=reward,
    read_prompt=read_prompt,
    read_row=countdown.read_row,
    template="chat",
    instruction=INSTRUCTION,
    generate=generate,
)
