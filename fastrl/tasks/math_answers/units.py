"""Units and number words behind a quantity: `5 cm`, `60 km/h`, `2 million dollars`, `12 square feet`, `5 apples`.

A unit is a canonical name, so that `5 km/h` and `5 kilometers per hour` agree and `5 cm` and `5 m` do not. A number
word is a factor, not a unit: `2 million` is 2000000. Words that turn the quantity into another one (`at least`,
`remainder`, `below zero`) are not units, and a text that has one is not read at all.
"""

import re
from fractions import Fraction

SCALES = {"percent": Fraction(1, 100)}  # units with a value of their own; a degree has one, too: pi/180

_NUMBER_WORDS = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "lakh": Fraction(10**5),
    "crore": Fraction(10**7),
    "million": Fraction(10**6),
    "mln": Fraction(10**6),
    "billion": Fraction(10**9),
    "bn": Fraction(10**9),
    "trillion": Fraction(10**12),
    "quadrillion": Fraction(10**15),
    "dozen": Fraction(12),
    "half": Fraction(1, 2),
    "halves": Fraction(1, 2),
    "third": Fraction(1, 3),
    "quarter": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8),
    "ninth": Fraction(1, 9),
    "tenth": Fraction(1, 10),
    "twelfth": Fraction(1, 12),
    "sixteenth": Fraction(1, 16),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
    "billionth": Fraction(1, 10**9),
}
_ALIASES = {
    name: canonical
    for canonical, names in {
        "": "unit",
        "degree": "deg",
        "percent": "% percentage pct",
        "dollar": "usd buck",
        "euro": "eur",
        "pound sterling": "gbp quid",
        "yen": "jpy",
        "rupee": "inr",
        "cent": "¢",
        "mm": "millimeter millimetre",
        "cm": "centimeter centimetre",
        "dm": "decimeter decimetre",
        "m": "meter metre",
        "km": "kilometer kilometre kms",
        "inch": "in",
        "foot": "ft feet",
        "yard": "yd",
        "mile": "mi",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "gram": "g gm",
        "mg": "milligram",
        "kg": "kilogram kilo",
        "lb": "pound",
        "ounce": "oz",
        "ton": "",
        "liter": "l litre",
        "ml": "milliliter millilitre",
        "gallon": "gal",
        "person": "people",
        "child": "children",
        "man": "men",
        "woman": "women",
        "mph": "",
        "kph": "kmh kmph",
        "day": "",
        "week": "",
        "month": "",
        "year": "yr",
        "radian": "rad",
        "degree celsius": "degc celsius °c",
        "degree fahrenheit": "degf fahrenheit °f",
        "kelvin": "",
        "joule": "",
        "newton": "",
        "watt": "",
        "volt": "",
        "hertz": "hz",
        "kw": "kilowatt",
        "kwh": "",
        "point": "pt",
        "student": "",
        "knot": "",
        "acre": "",
        "hectare": "",
        "quart": "qt",
        "pint": "",
        "cup": "",
        "square": "sq",
        "cubic": "cu",
    }.items()
    for name in (canonical, *names.split())
    if name
}
_COMPOUND = {"mph": "mile/hour", "kph": "km/hour", "degree celsius": "°c", "degree fahrenheit": "°f"}
# Bare words (outside of \text) that are units even where no space stands before them: 5cm.
GLUED = (
    "km/h|km/hr|m/s|cm/s|ft/s|mi/h|[ckmd]m|kg|mg|ml|mL|ft|in|yd|mi|oz|lbs?|hrs?|mins?|secs?|mph|kph|kmh|dollars?|cents?|"
    "degrees?|percent|million|billion|trillion|thousand|units?|(?:centi|kilo|milli)?met(?:er|re)s?|inch(?:es)?|feet|hours?|"
    "minutes?|seconds?|days?|years?"
)
# Words behind a number that say another quantity, another place or another kind of thing.
_NOT_UNIT_WORDS = (
    "or|and|not|no|more|less|least|most|than|over|under|above|below|between|from|to|about|approximately|around|"
    "nearly|almost|minus|plus|times|squared|cubed|root|factorial|modulo|mod|base|remainder|rem|r|if|when|where|"
    "all|any|except|without|positive|negative|zero|odd|even|prime|am|pm|bc|ad|with|only|exactly|choose|divided|"
    "by|is|are|was|equals|equal|other|otherwise"
)
_NOT_UNITS = frozenset(_NOT_UNIT_WORDS.split("|"))
_DIRECTIONS = frozenset(
    ["north", "south", "east", "west", "left", "right", "up", "down", "back", "forward"]
)  # 5 right triangles, but not 5 right
_WORD = re.compile(r"([a-zA-Z°%¢]+)\.?(?:\^\{?(-?\d)\}?)?")


def read_units(words: str) -> tuple[Fraction, str] | None:
    """(factor, canonical unit) of the words behind a number, None where they are no unit; "" is no unit in particular.

    Powers and quotients are part of the name: `square feet`, `ft^2` and `feet squared` are all "foot^2".
    """
    factor, parts, sign, power, is_direction = Fraction(1), [], 1, 1, False
    text = re.sub(r"\bper\b|\ban? (?=\w)", "/", words.replace("·", " ").replace("\\cdot", " "))
    text = re.sub(r"\b(\w+) (squared|cubed)\b", lambda m: f"{m[1]}^{2 if m[2] == 'squared' else 3}", text)
    for word in re.findall(r"/|[^\s/,]+", text):
        if word == "/":
            sign = -1
            continue
        match = _WORD.fullmatch(word)
        name = match and _singular(match.group(1))
        if not name or name in _NOT_UNITS or len(parts) > 5:
            return None
        is_direction = name in _DIRECTIONS
        if _ALIASES.get(name) in ("square", "cubic"):
            power = 2 if _ALIASES[name] == "square" else 3
        elif name in _NUMBER_WORDS:
            factor *= _NUMBER_WORDS[name] ** sign
        else:
            unit = _ALIASES.get(name, name)
            parts += [(unit, sign * power * int(match.group(2) or 1))] if unit else []
            power = 1
    return None if is_direction else (factor, _name(parts))


def _singular(word: str) -> str:
    word = word.lower() if len(word) > 1 or word == "L" else word
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in _NUMBER_WORDS or candidate in _ALIASES or candidate in _NOT_UNITS:
            return candidate
    return word.removesuffix("s") if len(word) > 3 else word


def _name(parts: list[tuple[str, int]]) -> str:
    written = " ".join(unit if power == 1 else f"{unit}^{power}" for unit, power in parts)
    for compound, spelled in _COMPOUND.items():
        unit, _, divisor = spelled.partition("/")
        if written == compound and divisor:
            return f"{unit} {divisor}^-1"
    return written
