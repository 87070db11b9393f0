r"""Whether two mathematical answers are the same value.

Cheapest first: equal strings after normalisation; exact rational arithmetic when both are plain numbers; element by
element for tuples, lists and intervals; and math-verify (sympy) for the rest. Equality is exact everywhere: a decimal
is the rational number it spells, so `0.33` is not `\frac{1}{3}` and `0.5` is `\frac12`. A percent sign is a unit:
`50\%` equals `50` (the question said "what percent") and also `0.5`, its value.

Order matters between parentheses or square brackets and not elsewhere. `\pm` stands for both values.
This module imports sympy on first need; it belongs into verifier workers only.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .answers import comparison_key, normalise, split_top_level

MAX_LENGTH = 300  # characters that are handed to the LaTeX parser; longer answers must match as strings
MAX_NESTING = 24

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>{_INTEGER})?\\frac\{{(?P<top>-?{_DECIMAL})\}}\{{(?P<bottom>{_DECIMAL})\}}"
    rf"|(?P<left>{_DECIMAL})/(?P<right>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL})(?:\\cdot10\^\{{?(?P<power>-?\d{{1,3}})\}}?)?)",
    re.ASCII,
)
_EXPLOSIVE = re.compile(
    r"\^(?:\{[^{}]*|[^{}])?\^"  # a tower 9^9^9
    r"|\^\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\^"  # 9^{9^9}, 9^{2^{x}}
    r"|\^\{?-?\d{6,}"
    r"|\d{5,}\}?\)?!|!\)?!"
    r"|\*\*.*\*\*|\\binom|\\cdots|\\prod|\\sum|\\int|\\lim"
)
_WORDS = re.compile(r"[a-zA-Z ,.'()-]*[a-zA-Z]{3,}[a-zA-Z ,.'()-]*")


def is_equal(gold: str, answer: str) -> bool:
    """Whether `answer` has the value of `gold`; both as extracted. May take long or raise on hostile text."""
    return _is_equal(normalise(gold), normalise(answer))


def read_number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, fraction, mixed number or `a\cdot10^n`; None for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    parts = {name: value and value.replace(",", "") for name, value in match.groupdict().items()}
    if parts["top"]:
        if Fraction(parts["bottom"]) == 0:
            return None
        value = Fraction(parts["whole"] or 0) + Fraction(parts["top"]) / Fraction(parts["bottom"])
    elif parts["left"]:
        if Fraction(parts["right"]) == 0:
            return None
        value = Fraction(parts["left"]) / Fraction(parts["right"])
    else:
        value = Fraction(parts["decimal"].rstrip(".")) * Fraction(10) ** int(parts["power"] or 0)
    return -value if parts["sign"] == "-" else value


def _is_equal(gold: str, answer: str) -> bool:
    if not gold or not answer:
        return False
    if comparison_key(gold) == comparison_key(answer):
        return True
    if gold.endswith("%") or answer.endswith("%"):
        return _is_equal_percent(gold, answer)
    gold_number, answer_number = read_number(gold), read_number(answer)
    if gold_number is not None and answer_number is not None:
        return gold_number == answer_number
    elements = _paired_elements(gold, answer)
    if elements is not None:
        return _are_equal_elements(*elements)
    if any(_WORDS.fullmatch(text) or ":" in text for text in (gold, answer)):
        return False  # words, ratios and times of day are compared as text
    return _is_equal_expression(gold, answer)


def _is_equal_percent(gold: str, answer: str) -> bool:
    gold_value, answer_value = gold.rstrip("%"), answer.rstrip("%")
    if _is_equal(gold_value, answer_value):
        return True
    numbers = read_number(gold_value), read_number(answer_value)
    if None in numbers or gold.endswith("%") == answer.endswith("%"):
        return False
    percent, plain = numbers if gold.endswith("%") else numbers[::-1]
    return percent == 100 * plain


def _paired_elements(gold: str, answer: str) -> tuple[list[str], list[str], bool] | None:
    """Elements of both sides and whether their order counts; None when neither is a tuple, list, set or interval."""
    gold_open, gold_parts, gold_close = _elements(gold)
    answer_open, answer_parts, answer_close = _elements(answer)
    if len(gold_parts) == 1 and len(answer_parts) == 1:
        return None
    is_ordered = gold_open not in ("", "{") or any("=" in part for part in gold_parts)
    if {gold_open, answer_open} <= {"", "{"}:
        return gold_parts, answer_parts, is_ordered
    if (gold_open, gold_close) != (answer_open, answer_close):
        return gold_parts, [], is_ordered
    return gold_parts, answer_parts, is_ordered


def _elements(text: str) -> tuple[str, list[str], str]:
    """(opening bracket, elements, closing bracket) of a tuple, interval, set or bare list; brackets "" for the last."""
    parts = split_top_level(text)
    if len(parts) > 1:
        return "", [expanded for part in parts for expanded in _expand_plus_minus(part)], ""
    match = re.fullmatch(r"(\\?\{|\(|\[)(.*?)(\\?\}|\)|\])", text, re.DOTALL)
    if match:
        opening, closing = match.group(1)[-1], match.group(3)[-1]
        inner_parts = split_top_level(match.group(2))
        is_one_pair = all(_is_balanced(part) for part in inner_parts)
        if is_one_pair and (len(inner_parts) > 1 or opening == "{"):
            expanded = [value for part in inner_parts for value in _expand_plus_minus(part)]
            return opening, expanded if opening == "{" else inner_parts, closing
    return "", _expand_plus_minus(text), ""


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _expand_plus_minus(text: str) -> list[str]:
    if text.count("\\pm") != 1:
        return [text]
    return [text.replace("\\pm", "+").removeprefix("+"), text.replace("\\pm", "-")]


def _are_equal_elements(gold: list[str], answer: list[str], is_ordered: bool) -> bool:
    if len(gold) != len(answer):
        return False
    if is_ordered:
        return all(_is_equal(g, a) for g, a in zip(gold, answer, strict=True))
    left = list(answer)
    for wanted in gold:
        found = next((a for a in left if _is_equal(wanted, a)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _is_equal_expression(gold: str, answer: str) -> bool:
    for text in (gold, answer):
        if len(text) > MAX_LENGTH or _EXPLOSIVE.search(text) or _nesting(text) > MAX_NESTING:
            return False
    gold_value, answer_value = _parse(gold), _parse(answer)
    if gold_value is None or answer_value is None or _is_certainly_different(gold_value, answer_value):
        return False
    from math_verify import verify

    return verify(gold_value, answer_value, timeout_seconds=None)


def _nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=512)
def _parse(text: str) -> Any:
    """A sympy object with every decimal as an exact rational, or None when the LaTeX parser cannot read `text`."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Float, Rational

    parsed = parse(
        f"${_spell_out(text)}$",
        extraction_config=[LatexExtractionConfig(normalization_config=_normalisation())],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    if not parsed:
        return None
    value = parsed[0]
    return value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)})


def _normalisation() -> Any:
    """math-verify's own clean-up without its unit stripping, which takes `5t` for 5 tonnes."""
    from latex2sympy2_extended import NormalizationConfig

    return NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")


# Longest first: \sinh before \sin.
_COMMANDS = (
    "varnothing|emptyset|overline|setminus|triangle|epsilon|arccos|arcsin|arctan|lambda|lfloor|mathbb|rfloor|"
    "alpha|angle|begin|delta|gamma|infty|lceil|omega|rceil|sigma|theta|beta|cdot|circ|cosh|frac|pmod|sinh|"
    "sqrt|tanh|bar|cap|cis|cos|cot|csc|cup|det|div|end|exp|gcd|hat|lcm|log|max|min|mod|phi|rho|sec|sin|tan|"
    "tau|vec|ge|gt|in|le|ln|lt|mp|mu|ne|pi|pm|to"
)
_KNOWN = re.compile(rf"\\(?:{_COMMANDS})")
_KNOWN_PREFIX = re.compile(rf"\\({_COMMANDS})(?=[a-zA-Z])")


def _spell_out(text: str) -> str:
    r"""Give the parser back what normalisation took: spaces (`\pir` is `\pi r`), plain digits, matrix row breaks."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if "matrix}" in text:
        text = re.sub(r"(?<!\\)\\(?=[-\d(])", r"\\\\", text)
    return re.sub(r"\\[a-zA-Z]+", _space_command, text)


def _space_command(match: re.Match) -> str:
    name = match.group()
    return name if _KNOWN.fullmatch(name) else _KNOWN_PREFIX.sub(r"\\\1 ", name)


def _is_certainly_different(gold: Any, answer: Any) -> bool:
    """True when both take clearly different values at one point: sound, and far cheaper than simplifying."""
    from sympy import Expr, Rational

    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: Rational(7 + 2 * i, 5 + i) for i, symbol in enumerate(symbols)}
    try:
        values = [complex(side.subs(point).evalf(30)) for side in (gold, answer)]
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return False  # no number there: leave it to math-verify
    difference = abs(values[0] - values[1])
    return difference > 1e-9 * max(1.0, abs(values[0]))
