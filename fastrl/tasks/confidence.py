"""Reading from a completion how sure it is of itself."""

import re

TAIL_CHARS = 2000  # confidence is stated at the end; a completion may be a megabyte
_STATED = re.compile(
    r"confidence(?:>|\s{0,3}(?:is|of|=|:)?\s{0,3})\s{0,3}(\d{1,3}(?:\.\d{1,12})?|\.\d{1,12})(\s?%)?(?!\.?\w)",
    re.IGNORECASE,
)


def stated_confidence(completion: str) -> float | None:
    """The last `confidence: 0.8`, `confidence is 80%` or `<confidence>0.8</confidence>` of a completion.

    None where nothing is stated, or the last statement is not within [0, 1] (or 0 % to 100 %).
    """
    matches = _STATED.findall(completion[-TAIL_CHARS:])
    if not matches:
        return None
    number, percent = matches[-1]
    value = float(number) / 100 if percent else float(number)
    return value if value <= 1 else None
