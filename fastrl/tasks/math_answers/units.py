"""Units and number words behind a quantity: `5 cm`, `60 km/h`, `2 million dollars`, `12 square feet`, `5 apples`.

A unit is a canonical name, so that `5 km/h` and `5 kilometers per hour` agree and `5 cm` and `5 m` do not. A number
word is a factor, not a unit: `2 million` is 2000000. Words that turn the quantity into another one (`at least`,
`remainder`, `below zero`) are not units, and a text that has one is not read at all.
"""

import re
from fractions import Fraction

SCALES = {"percent": Fraction(1, 100)}  # units with a value of their own; a degree has one, too: pi/180

_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth"
_POWERS_OF_TEN = (
    {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "mln": 6, "crore": 7}
    | {"billion": 9, "bn": 9, "trillion": 12, "quadrillion": 15}
    | {"hundredth": -2, "thousandth": -3, "millionth": -6, "billionth": -9}
)
_NUMBER_WORDS = (
    {word: Fraction(10) ** power for word, power in _POWERS_OF_TEN.items()}
    | {word: Fraction(1, number) for number, word in enumerate(_ORDINALS.split(), start=3)}
    | {"half": Fraction(1, 2), "halves": Fraction(1, 2), "quarter": Fraction(1, 4)}
    | {"dozen": Fraction(12), "twelfth": Fraction(1, 12), "sixteenth": Fraction(1, 16)}
)
_UNALIASED = "ton mph day week month kelvin joule newton watt volt kwh student knot acre hectare pint cup"
_ALIASES = {name: name for name in _UNALIASED.split()} | {
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
        "liter": "l litre",
        "ml": "milliliter millilitre",
        "gallon": "gal",
        "person": "people",
        "child": "children",
        "man": "men",
        "woman": "women",
        "kph": "kmh kmph",
        "year": "yr",
        "radian": "rad",
        "degree celsius": "degc celsius °c",
        "degree fahrenheit": "degf fahrenheit °f",
        "hertz": "hz",
        "kw": "kilowatt",
        "point": "pt",
        "quart": "qt",
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
# As the last word: `5 right triangles` has a unit, `5 right` has none.
_DIRECTIONS = frozenset(["north", "south", "east", "west", "left", "right", "up", "down", "back", "forward"])
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
