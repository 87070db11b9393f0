r"""The final answer of a completion, and its normal form as text.

`extract_answer` takes the last `\boxed{...}` (braces matched; `\fbox{...}` and `\boxed 5` too), else what follows the
last "he answer is", else what follows the last `####`. The NSR authors' code falls back on the last number of the text;
this does not: a completion that does not mark its answer has none.

`normalise` removes what carries no mathematics (spaces, sizes, units, text wrappers, currency, degrees), in the manner
of Minerva (arXiv:2206.14858, appendix D.1), so that most right answers are equal strings before any algebra.
"""

import re

MAX_LENGTH = 2000  # characters of an extracted answer


def extract_answer(text: str) -> str | None:
    """The answer that the completion marks as final, or None. Linear in the text."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start >= 0:
        return _box_content(text, start + (6 if text.startswith("\\boxed", start) else 5))
    for marker in ("he answer is", "####"):
        start = text.rfind(marker)
        if start >= 0:
            line = text[start + len(marker) :].lstrip(": \t\n").partition("\n")[0]
            return line.strip().rstrip(".") or None
    return None


def _box_content(text: str, position: int) -> str | None:
    rest = text[position : position + 2 * MAX_LENGTH].lstrip()
    if not rest.startswith("{"):
        match = re.match(r"[^\s$\\{}]+", rest)  # \boxed 5
        return match.group().rstrip(".,") if match else None
    depth = 0
    for i, character in enumerate(rest):
        if character in "{}" and (i == 0 or rest[i - 1] != "\\"):
            depth += 1 if character == "{" else -1
            if depth == 0:
                return rest[1:i].strip() or None
    return None  # cut off before the box closed, or longer than any answer


_SYMBOLS = {"−": "-", "–": "-", "×": "\\cdot", "·": "\\cdot", "π": "\\pi", "∞": "\\infty", "≤": "\\le", "≥": "\\ge"} | {
    "°": "^\\circ",
    "∪": "\\cup",
    "√": "\\sqrt",
}

_UNITS = (
    "degrees?|deg|radians?|percent|dollars?|cents?|units?|points?|people|students?|hours?|minutes?|seconds?|days?|weeks?|"
    "months?|years?|miles?|mph|feet|foot|ft|inch(?:es)?|in|yards?|(?:kilo|centi|milli)?met(?:er|re)s?|[ckm]?m|(?:kilo)?grams?|"
    "k?g|pounds?|lbs?|ounces?|oz|gallons?|lit(?:er|re)s?"
)
_POWER = r"(?:\^\{?[23]\}?)?"
_TEXT = r"\\(?:text(?:bf|it|rm|normal|sf)?|mbox|math(?:rm|bf|it|sf)|operatorname)"

# Applied in this order, each to the result of the one before.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:displaystyle|textstyle|limits|boldsymbol|bf|rm)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (rf",?\s*(?:{_TEXT}\s*\{{[\s,]*(?:and|or)[\s,]*\}}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))", ","),
        (r"\\[()\[\]]|\\?\$", ""),  # delimiters of inline mathematics, currency
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", ""),
        (
            rf"(?<=[\d}})a-z])[\s~]*(?:\\[,;:! ])*\s*{_TEXT}\s*\{{(?!\s*[ap]\.?m)[^{{}}\d]*\}}\s*{_POWER}\s*$",
            "",
        ),  # 5 \text{ cm}^2
        (rf"(?<=[\d}}])\s+(?:(?:sq(?:uare|\.)?|cubic)\s+)?(?:{_UNITS})\.?\s*{_POWER}\s*$", ""),  # 5 square units
        (rf"{_TEXT}(?=\s*\{{)", ""),
        (r"(?<=\d),\s+(?=\d{3}(?!\d))", ";"),  # 1, 722 is a list and 1,722 a number
        (r"\\{2,}", "\0"),  # a row break must survive the next three lines
        (r"\\[,;:! ]|~|\\q?quad(?![a-zA-Z])", ""),
        (r"\s+", ""),
        ("\0(?=[a-zA-Z])", r"\\\\ "),
        ("\0", r"\\\\"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leq|leqslant|le)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant|ge)(?![a-zA-Z])", r"\\ge"),
        (r"\\neq(?![a-zA-Z])", r"\\ne"),
        (r"\\(?:times|ast)(?![a-zA-Z])|(?<!\\)\*", r"\\cdot"),
        (r"(?<![\\a-zA-Z])(sqrt|infty|pi)(?![a-zA-Z])", r"\\\1"),
        (r"\\frac(\d)(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac(\d)\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"([\^_])\{([0-9a-zA-Z])\}", r"\1\2"),
        (r"\{,\}", ","),
        (r"\{\}", ""),
        (r",{2,}", ","),
        (r"\\%", "%"),
    ]
]


def normalise(answer: str) -> str:
    """The normal form of an answer: no spaces, one spelling of each construct. It is not reduced: `2/4` stays."""
    for character, replacement in _SYMBOLS.items():
        answer = answer.replace(character, replacement)
    answer = answer.strip().rstrip(".").lstrip(":")
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    return _strip_prefix(_strip_braces(answer.strip().rstrip(".,;")))


def comparison_key(normal: str) -> str:
    r"""The string by which two normal forms are compared first.

    Row breaks collapse to one backslash: published copies of MATH have lost the second one.
    """
    key = re.sub(r"\\+ ?", r"\\", normal).replace(";", ",")
    choice = re.fullmatch(r"\(?([A-Z])\)?", key)
    if choice:
        return choice.group(1)
    return key.casefold() if re.fullmatch(r"[a-zA-Z'-]{2,}", key) else key


def split_top_level(text: str) -> list[str]:
    """`text` cut at the commas (or semicolons) outside of all brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in ",;" and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _strip_braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _closes_at_end(text):
        text = text[1:-1]
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def _strip_prefix(text: str) -> str:
    r"""`x=5` and `x\in[1,2]` lose the name in front, `y=2x,z=3` and `2x=y=4` do not."""
    if len(split_top_level(text)) > 1 and text.count("=") > 1:
        return text
    return re.sub(r"^[a-zA-Z](?:_\w)?(?:\([a-zA-Z]\))?(?:=|\\in(?![a-zA-Z]))(?=[^=]+$)", "", text)
