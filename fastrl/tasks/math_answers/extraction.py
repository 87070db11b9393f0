r"""The final answer of a completion or of a worked solution: what the text marks as final.

That is the content of the last `\boxed{...}` (braces matched; `\fbox{...}` and `\boxed 5` count, too). Without a box it
is what follows the last `####`, "answer is" or "Answer:", up to the end of the clause: `$5$` in "The final answer is
$5$. I hope it is correct.", `5` in "**The answer is 5**, because 2+3=5".
A text that marks no answer has none. (The NSR authors' code takes the last number of such a text.)
"""

import re

MAX_LENGTH = 2000  # characters of an extracted answer

_MARKER = re.compile(
    r"####|\banswers?\s{1,3}(?:is|are)\b(?![ \t]{1,3}not\b)"
    r"|(?:^|\n)[ \t*#_>-]{0,8}(?:final[ \t])?answer[ \t]?[*_]{0,3}:",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:in)?correct|right|wrong|clear|obvious|unique|below|above|found|given|reasonable|consistent|"
    r"as follows|in the\b",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"[\s:*_`>]+|(?:simply|just|exactly|precisely|indeed|therefore|thus|hence|option|choice|equal to|given by|"
    r"the (?:number|value|choice|option)(?: of)?)\b[,:]?",
    re.I,
)
_MATHEMATICS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_CLAUSE_END = re.compile(
    r"\n|[?!.](?=\s|$)|;(?=\s)|\*\*(?=\W|$)"
    r"|,?\s+(?=(?:because|since|as|which|so|for|when|where|that|by|hence|given|after|therefore|thus|but|while|i|we|making|"
    r"giving|obtained)\s)"
    r"|,?\s+(?=and\s+(?:[a-zA-Z]{2,}))"  # "5 and that is all", but not "5 and 6"
    r"|,\s+(?!(?:and|or)\b)(?=[a-zA-Z]{2,})",
    re.IGNORECASE,
)


def extract_answer(text: str) -> str | None:
    """The answer that the completion marks as final, or None. Linear in the text."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start >= 0:
        return _box_content(text, start + (6 if text.startswith("\\boxed", start) else 5))
    for match in reversed(list(_MARKER.finditer(text))):
        rest = re.sub(r"[ \t]{2,}", " ", text[match.end() : match.end() + 2 * MAX_LENGTH])
        rest = rest[_num_leading(rest) :]
        if not _NO_ANSWER.match(rest):
            return _clause(rest)
    return None


def has_marked_answer(text: str) -> bool:
    """Whether `text` is a worked solution: it marks an answer, inside or behind other words."""
    return "\\boxed" in text or "\\fbox" in text or _MARKER.search(text) is not None


def _num_leading(rest: str) -> int:
    """How many characters stand before the answer: colons, stars, line breaks, `the number`."""
    position = 0
    while match := _LEAD.match(rest, position):
        position = match.end()
    return position


def _clause(rest: str) -> str | None:
    """`rest` up to the end of the clause; ends inside of `$...$` do not count."""
    end, shields = 0, [match.span() for match in _MATHEMATICS.finditer(rest)]
    for match in _CLAUSE_END.finditer(rest):
        if not any(start < match.start() < stop for start, stop in shields):
            end = match.start()
            break
    else:
        end = len(rest)
    answer = _MATHEMATICS.sub(lambda m: f" {next(group for group in m.groups() if group)} ", rest[:end])
    return answer.strip().strip("*_`").rstrip(".,;: ").strip() or None


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
