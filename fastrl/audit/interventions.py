r"""Changes of a completion that must not change its reward: spaces, a sentence that says nothing, markup, order, words.

Each is a function of the text alone and returns None where it does not apply. Prose (two words in a row) and formulas
(nothing but numbers, operators and parentheses) have their own: a sentence does change what a formula is. Nothing is
put in front of or behind a tag (`<think>`), whose place may be what a reward asks for.
"""

import ast
import re
from collections.abc import Callable

NEUTRAL = "I read the question once more and went through it slowly."
NUM_PADDING = 10  # sentences
MAX_FORMULA = 500  # characters that are parsed
WORDS = {"therefore": "hence", "so": "thus", "we get": "we obtain", "first": "to begin with", "then": "next"}
_PROSE = re.compile(r"[A-Za-z]{2,}[\s,.;:]+[A-Za-z]{2,}")
_FORMULA = re.compile(r"[-+*/() .\d]*\d[-+*/() .\d]*")
_OPERATOR = re.compile(r" *([-+*/]) *")
_SENTENCE_END = re.compile(r"(?<=[.!?])(\s+)")
_MARKS_ANSWER = re.compile(r"\\f?box|####|answer|<", re.IGNORECASE)
_WORDS = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)


def _of(kind: re.Pattern, change: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """The change of a text of this kind alone: prose holds its pattern, a formula is nothing else."""

    def intervention(text: str) -> str | None:
        is_kind = kind.fullmatch(text) if kind is _FORMULA else kind.search(text)
        return change(text) if is_kind else None

    return intervention


def _before(words: str) -> Callable[[str], str | None]:
    return _of(_PROSE, lambda text: None if text.lstrip().startswith("<") else words + text)


def _behind(words: str) -> Callable[[str], str | None]:
    return _of(_PROSE, lambda text: None if text.rstrip().endswith(">") else text + words)


def _sentences_swapped(text: str) -> str | None:
    """The first two sentences, of at least three, change places; none of the two may mark an answer."""
    parts = _SENTENCE_END.split(text, maxsplit=2)  # first, space, second, space, others
    if len(parts) < 5 or not parts[4] or _MARKS_ANSWER.search(parts[0] + parts[2]):
        return None
    return "".join([parts[2], parts[1], parts[0], *parts[3:]])


def _other_words(text: str) -> str | None:
    def other(match: re.Match) -> str:
        word = WORDS[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    changed = _WORDS.sub(other, text)
    return changed if changed != text else None


def _operands_swapped(text: str) -> str | None:
    """a + b → b + a, a * b → b * a, of the outermost operation."""
    if len(text) > MAX_FORMULA:
        return None
    try:
        root = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(root, ast.BinOp) or not isinstance(root.op, ast.Add | ast.Mult):
        return None
    return ast.unparse(ast.BinOp(root.right, root.op, root.left))


INTERVENTIONS: dict[str, Callable[[str], str | None]] = {
    "spaces in front": lambda text: "   " + text,
    "spaces behind": lambda text: text + "   ",
    "newline behind": _behind("\n"),
    "sentence in front": _before(f"{NEUTRAL} "),
    "ten sentences in front": _before(f"{NEUTRAL} " * NUM_PADDING),
    "sentence behind": _behind(f"\n{NEUTRAL}"),
    "heading in front": _before("### Solution\n\n"),
    "sentences swapped": _of(_PROSE, _sentences_swapped),
    "other words": _of(_PROSE, _other_words),
    "spaces in the box": lambda text: text.replace("\\boxed{", "\\boxed{ ") if "\\boxed{" in text else None,
    "spaces round operators": _of(_FORMULA, lambda text: _OPERATOR.sub(r" \1 ", text)),
    "parentheses around": _of(_FORMULA, lambda text: f"({text})"),
    "operands swapped": _of(_FORMULA, _operands_swapped),
}
