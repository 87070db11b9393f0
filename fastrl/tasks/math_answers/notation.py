r"""One spelling for each construct of an answer, as text: `\dfrac 12\,\mathrm{cm}` is `\frac{1}{2}\text{cm}`.

The rules follow Minerva (arXiv:2206.14858, appendix D.1), but drop nothing that carries meaning. Units stay, as
`\text{...}`. A space between digits stays unless it separates thousands. A comma goes where it separates thousands and
stays where it separates elements of a list. Most right answers then are equal strings before any algebra, and answers
of different value never are.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from .units import GLUED

_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": "/", "⁄": "/"}
    | {"∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne "}
    | {"°": r"^\circ ", "º": r"^\circ "}
    | {"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ", "±": r"\pm ", "∓": r"\mp "}
    | {"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "′": "'"}
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | {"π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu "}
    | {"€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "₹": r"\rupee ", "¢": r"\text{cents}", "，": ",", "％": "%"}
    | dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u200a", " ")
    | dict.fromkeys("\u200b\ufeff\u2060", "")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CURRENCIES = {r"\$": "dollar", r"\euro": "euro", r"\pounds": "pound sterling", r"\yen": "yen", r"\rupee": "rupee"}
_CURRENCY = r"(\\\$|\\(?:euro|pounds|yen|rupee)(?![a-zA-Z]))\s*"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|max|min|cis"
_BARE_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|log|ln|exp|gcd|lcm"  # 5 min, 5 sec are times
_AMOUNT = r"(\d[\d,]*\.?\d*|\.\d+)"
_NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_NOTHING = ("no solution", "no solutions", "no real solution", "no real solutions", "empty set", "the empty set")
_NAMED = (
    dict.fromkeys(_NOTHING, r"\emptyset")
    | {"all real numbers": r"\mathbb{R}", "all reals": r"\mathbb{R}"}
    | {"infinity": r"\infty", "negative infinity": r"-\infty", "zero": "0"}
    | {word: str(number) for number, word in enumerate(_NUMBERS.split(), start=1)}
)


def _rewrite_text(match: re.Match) -> str:
    r"""The content of a \text: a connective, a function's name, plain mathematics, or words, which stay \text."""
    content = " ".join(re.sub(r"~|\\[ ,]", " ", match.group(1)).split())
    if re.fullmatch(r"[\s,]*(?:and|or)?[\s,]*", content):
        return f" {content} "
    is_behind_number = re.search(
        r"[\d}{/](?:\s|~|\\[,;:! ])*$", match.string[max(0, match.start() - 8) : match.start()]
    )
    if re.fullmatch(_FUNCTIONS, content) and not (content in ("min", "sec") and is_behind_number):
        return f"\\{content} "
    if re.fullmatch(r"(?:st|nd|rd|th)", content):
        return content
    if is_behind_number and re.fullmatch(r"[mgshlLNJWVK]", content):
        return f"\\text{{{content}}}"
    return f" {content} " if not re.search(r"[a-zA-Z]{2}", content) else f"\\text{{{content}}}"


def _time_of_day(match: re.Match) -> str:
    hours, minutes, half = int(match.group(1)), match.group(2) or "00", match.group(3).lower()
    return f"{hours}:{minutes}\\text{{{half}m}}"


_GLUED = rf"(?<=[\d}})])\s*(?<![a-zA-Z_^])({GLUED})(?:\s*\^\s*\{{?\s*([23])\s*\}}?)?(?![a-zA-Z{{(^_])"

Replacement = str | Callable[[re.Match], str]


def _rules(*rules: tuple[str, Replacement]) -> list[tuple[re.Pattern, Replacement]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _rewritten(text: str, rules: list[tuple[re.Pattern, Replacement]]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


# Applied in this order, each to the result of the one before.
_TEXTS = _rules(
    (r"\\(?:displaystyle|textstyle|limits|rm|bf|it)(?![a-zA-Z])", " "),
    (r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt|pmb)(?![a-zA-Z])", ""),
    (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\s*\.?", ""),
    (r"\\text(?:bf|it|rm|normal|sf|tt)(?![a-zA-Z])|\\(?:mbox|hbox|mathrm|operatorname\*?)(?![a-zA-Z])", r"\\text"),
    (r"\\text\s*\{([^{}]*)\}", _rewrite_text),
    (r"\\text\s+(?=[a-zA-Z])", ""),
    (
        r"\\[dtc]?frac\s+(\d)\s+(\d)(?!\d)|\\[dtc]frac(?![a-zA-Z])\s*(\d)\s+(\d)(?!\d)",
        lambda m: f"\\frac{{{m[1] or m[3]}}}{{{m[2] or m[4]}}}",
    ),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\{\s*(and|or)\s*\}", r" \1 "),
)
_REWRITES = _rules(
    (r"\\(?:l|r)?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
    (r"\\[()]|\\\[(?!\d*\.?\d*(?:pt|em|ex|mm|cm)\])|(?<!\\)\\\]|(?<!\\)\$", " "),  # inline mathematics
    (r"\\+\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]", r"\\\\ "),  # \\[4pt]
    (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])", r"\\degree "),
    (r"\\degree\s*(?:\\text\s*\{)?\s*([CF])\s*\}?(?![a-zA-Z])", r"\\text{deg\1}"),
    (r"(?<=\d)(?:,?\s*\\!\s*|\{,\}\s*)(?=\d{3}(?!\d))", ""),  # 10,\!080 and 10{,}080
    (r"(?<=\d)\{,\}(?=\d)", "."),
    (r"\\!", ""),
    (_CURRENCY + _AMOUNT, lambda m: f"{m[2]}\\text{{{_CURRENCIES[m[1]]}}}"),
    (_CURRENCY, lambda m: f"\\text{{{_CURRENCIES[m[1]]}}}"),
    (r"\\%", "%"),
    (r"(\d{1,2})(?::(\d\d))?\s*(?:\\text\{)?\s*([aApP])\.?\s*[mM]\.?\s*\}?\s*$", _time_of_day),
    (r"(?<=\d)\s*\\text\{to\}\s*(?=\d)|(?<=\d)\s+to\s+(?=\d)", ":"),
    (r"(?<=\d)(?:st|nd|rd|th)(?![a-zA-Z])|(?<=\d)\^\s*\{?\s*(?:st|nd|rd|th)\s*\}?(?![a-zA-Z])", ""),
    (r"\\[,;:>/ ]|~|\\q?quad(?![a-zA-Z])|\\hspace\{[^{}]*\}", " "),
    (rf"(?<![\\a-zA-Z])(sqrt|infty|pi|theta|alpha|beta|{_BARE_FUNCTIONS})(?![a-zA-Z])", r"\\\1 "),
    (r"(?<=\d)\s*\\?times(?![a-zA-Z])\s*(?=\d)|\\(?:times|ast|cdotp)(?![a-zA-Z])|(?<!\\)\*(?!\*)", r"\\cdot "),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\cdot "),
    (_GLUED, lambda m: f"\\text{{{m[1]}{'^' + m[2] if m[2] else ''}}}"),
    (r"(?<=[\d})%])\s+([a-zA-Z]{2,}[a-zA-Z \^\d/.]*?)\s*$", r"\\text{\1}"),  # 5 red apples
    (
        r"(?<=[\d}])\s+([mgshlL])(?:\s*\^\s*\{?\s*([23])\s*\}?)?\s*$",
        lambda m: f"\\text{{{m[1]}{'^' + m[2] if m[2] else ''}}}",
    ),
    (r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),
    (r"(\\text\{[^{}]*)\}\s*\^\s*\{?\s*(-?\d)\s*\}?", r"\1^\2}"),
    (r"(\\text\{[^{}]*)\}\s*(/)\s*\\text\{", r"\1\2"),
    (r"(\\text\{[^{}]*)\}\s*(?:\\cdot)?\s*\\text\{", r"\1 "),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\(?:leq|leqslant|le)(?![a-zA-Z])|<=|=<", r"\\le "),
    (r"\\(?:geq|geqslant|ge)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
    (r"\\varnothing(?![a-zA-Z])|\\text\{\s*\\emptyset\s*\}", r"\\emptyset "),
    (r"\\(?:R|Reals|reals)(?![a-zA-Z])", r"\\mathbb{R}"),
    (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (r"\{\s*\}", ""),
)
_COMPACT = _rules(
    (r"(?<![\d.,/^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.!^])", r"\1\\frac{\2}{\3}"),  # 1 3/4
    (r"(?<![\d.,] )(?<![\d.])(?!0)(\d{1,3})((?: \d{3})+)(?![\d.]| \d)", lambda m: m[1] + m[2].replace(" ", "")),
    (r"(?<=\d)\s+(?=[\d.]*\d)", "\0"),
    (r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])", "\\1\1"),
    (r"(?<![\\\1a-zA-Z])([a-zA-Z]{2,})\s+(?=[a-zA-Z]{2})", "\\1\1"),
    (r"\\\\\s*", "\\\\\\\\"),
    (r"(\\text\{[^{}]*\})|\s+", lambda m: m[1] or ""),
    ("[\0\1]", " "),
    (r"\\frac(\d)(\d)(?!\d)", r"\\frac{\1}{\2}"),
    (r"\\frac(\d)(?=[{\\a-zA-Z])", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt([0-9a-zA-Z])", r"\\sqrt{\1}"),
    (r"([\^_])\{([0-9a-zA-Z])\}", r"\1\2"),
    (r",{2,}", ","),
)


_PLAIN = re.compile(  # nothing to do
    r"-?(?:\d+(?:\.\d+)?|\\frac\{\d{1,9}\}\{\d{1,9}\}|[a-z]|\([a-z\d],[a-z\d]\))", re.ASCII
)


@lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    """The normal form of an answer: one spelling of each construct. It is not reduced: `2/4` stays."""
    if _PLAIN.fullmatch(answer):
        return answer
    answer = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", answer)
    answer = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", answer)
    answer = re.sub(r"[\x00-\x08]", "\ufffd", answer)  # two of them serve as marks below
    answer = _strip_stop(answer.translate(_SYMBOLS).strip().lstrip(":"))
    answer = _join_connectives(_rewritten(answer, _TEXTS))
    answer = _join_thousands(_rewritten(answer, _REWRITES))
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", answer).strip(" .{}").lower()
    if words in _NAMED:
        return _NAMED[words]
    return _strip_braces(_strip_stop(_rewritten(answer, _COMPACT)))


def _strip_stop(text: str) -> str:
    text = text.strip().rstrip(",;").rstrip()
    return text if text.endswith(("\\.", "..")) else text.removesuffix(".").rstrip()


def _join_connectives(text: str) -> str:
    r"""`and`, `or` separate the elements of a list; between inequalities they are logic, `\land` and `\lor`."""
    is_logic = len(re.findall(r"[<>]|\\(?:leq?|geq?|neq?|[lg]t)(?:slant)?(?![a-zA-Z])", text)) > 1
    parts = re.split(r"(\\text\{[^{}]*\})", text)
    for word in ("and", "or"):
        symbol = f" \\\\l{word} " if is_logic else ", "
        pattern = rf",?\s*(?<![a-zA-Z\\]){word}(?![a-zA-Z])\s*"
        parts[::2] = [re.sub(pattern, symbol, part) for part in parts[::2]]
    return "".join(parts)


def _join_thousands(text: str) -> str:
    """Commas of thousands go. `(1,234)` is a pair, unless other commas there have a space behind."""
    parts = re.split(r"(\\[{}]|[()\[\]])", text)
    depth = 0
    for i, part in enumerate(parts):
        depth += (part in ("(", "[", "\\{")) - (part in (")", "]", "\\}"))
        if depth <= 0 or re.search(r",\s", part):
            parts[i] = re.sub(
                r"(?<![\d.])(?<!\d,)(?!0)\d{1,3}(?:,\d{3})+(?![\d,]*\d)", lambda m: m[0].replace(",", ""), part
            )
    return "".join(parts)


def _strip_braces(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _closes_at_end(text):
        text = text[1:-1]
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return i == len(text) - 1
    return False


def comparison_key(normal: str) -> str:
    r"""The string by which two normal forms are compared first.

    Row breaks collapse to one backslash: published copies of MATH have lost the second one. Words are folded: `East`.
    """
    key = re.sub(r"\\{2,} ?", r"\\", normal) if "matrix}" in normal else normal
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", key)
    if re.fullmatch(r"[a-zA-Z][a-zA-Z ,.'()-]+", words) and is_words(words, wrapped=words != key):
        return re.sub(r"[ ,.]+", "", words).casefold()
    if re.fullmatch(r"\\text\{[^{}]*\}", key):
        return words.replace(" ", "")
    return re.sub(r"^\(([A-Z])\)$|^([A-Z])\)$", r"\1\2", key)


def is_words(text: str, wrapped: bool) -> bool:
    """Whether letters are words and no product of variables: in a `\\text`, or in the case of prose (not `IX`)."""
    if wrapped:
        return True
    return bool(re.search(r"[a-zA-Z]?[a-z]{2}", text)) and not re.search(r"[a-z][A-Z]", text)
