r"""Tokens of LaTeX: commands, numbers, letters, and runs of capitals (`AB` is one name, `ab` a product).

A command that is glued to letters is cut: `\pir` is read as `\pi r`, because published answers have lost the space. A
space between digits is a token that no rule of the grammar takes, so that such an answer is refused.
"""

import re
from fractions import Fraction
from typing import NoReturn

from .trees import Unreadable

TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc", "cis")
FUNCTIONS = (*TRIGONOMETRIC, "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp")
LISTED = ("gcd", "lcm", "max", "min")  # functions of a list in brackets
MARKS = ("overline", "bar", "vec", "hat", "tilde", "mathbb", "mathcal", "widehat", "overrightarrow")
_LETTERS = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|"
    "phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|pi|infty|ell|hbar|emptyset"
)
LETTERS = frozenset(_LETTERS.split("|"))
_STRUCTURE = (
    "frac|sqrt|binom|cdot|cup|cap|setminus|lor|land|pm|mp|le|ge|ne|in|begin|end|text|lfloor|rfloor|lceil|rceil|degree|"
    "sum|prod|angle|triangle|ldots"
)
_COMMANDS = sorted((*FUNCTIONS, *LISTED, *LETTERS, *MARKS, *_STRUCTURE.split("|")), key=len, reverse=True)
_SET_BUILDER = re.compile(r"^\\\{[a-z](?:\\in\\mathbb\{R\})?[|:](.*[<>=].*|.*\\(?:le|ge|ne).*)\\\}$")  # {x | x > 3}
_GLUED_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?=[a-zA-Z])")
_TOKEN = re.compile(
    r"\\text\{[^{}]*\}|\\begin\{[a-z]*matrix\}|\\end\{[a-z]*matrix\}|\\mathbb\{[A-Z]\}|\\[a-zA-Z]+|\\\\|\\."
    r"|(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}(?![\da-zA-Z.])"  # 1.5e3
    r"|[\dA-F]{2,}(?=_\{?1\d)"  # A5_{11}
    r"|\d*\.\d*\\(?:overline|bar|dot)(?:\{\d+\}|\d)|(?:\d+\.\d*|\.\d+|\d+)|[A-Z]{2,}|.",
    re.ASCII | re.DOTALL,
)


def read_tokens(text: str) -> list[str]:
    """The tokens of an answer in normal form, in order. Only spaces behind commands are left out."""
    text = _SET_BUILDER.sub(r"\1", text)
    if "matrix}" in text:
        text = re.sub(r"(?<!\\)\\(?=[-\d(])", r"\\\\", text)  # published MATH lost the second backslash of a row break
    tokens: list[str] = []
    for token in _TOKEN.findall(re.sub(r"\\[a-zA-Z]+", _split_command, text)):
        if token != " " or not re.match(r"\\[a-zA-Z]", tokens[-1] if tokens else ""):
            tokens.append(token)
    return tokens


def _split_command(match: re.Match) -> str:
    name = match.group()
    return name if name[1:] in _COMMANDS else _GLUED_COMMAND.sub(r"\\\1 ", name)


class TokenStream:
    """Tokens that a parser takes one after the other."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.position = tokens, 0

    def peek(self, ahead: int = 0) -> str | None:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else None

    def take(self, *wanted: str) -> str | None:
        """The next token if it is one of `wanted` (any, if none is named), consumed; else None."""
        token = self.peek()
        if token is None or (wanted and token not in wanted):
            return None
        self.position += 1
        return token

    def need(self, wanted: str) -> None:
        if self.take(wanted) is None:
            raise Unreadable(f"expected {wanted!r}, found {self.peek()!r}")

    def refuse(self, token: str) -> NoReturn:
        raise Unreadable(f"unexpected {token!r}")


def read_number(token: str) -> Fraction:
    """The exact value of `12`, `.5`, `1.5e3` or a repeating decimal `0.1\\overline{6}`."""
    whole, _, repeated = token.replace("{", "").replace("}", "").partition("\\")
    if not repeated:
        return Fraction(whole.rstrip(".") if "e" not in whole.lower() else whole)
    digits = re.sub(r"\D", "", repeated)
    num_fixed = len(whole.partition(".")[2])
    return Fraction("0" + whole.rstrip(".")) + Fraction(int(digits), (10 ** len(digits) - 1) * 10**num_fixed)
