"""Functions of rational numbers whose value is exact: roots, factorials, binomials, rounding, divisors.

Each takes and returns a `Fraction`, or returns None where the value is not rational. Sizes are checked before anything
is computed: `Unreadable` says that a value is out of reach.
"""

import math
from collections.abc import Callable
from fractions import Fraction

from .trees import Unreadable

MAX_FACTORIAL = 3000
MAX_ROOT = 64


class Undefined(ArithmeticError):
    """The expression has no value at this point."""


def _factorial(n: Fraction) -> Fraction | None:
    if n.denominator != 1:
        return None
    if n < 0:
        raise Undefined("factorial of a negative number")
    if n > MAX_FACTORIAL:
        raise Unreadable("too large a factorial")
    return Fraction(math.factorial(int(n)))


def _exact_root(value: Fraction, index: Fraction = Fraction(2)) -> Fraction | None:
    """The root where it is rational; the real one of a negative number where the index is odd."""
    if index.denominator != 1 or not 0 < index <= MAX_ROOT:
        return None
    if value < 0:
        root = _exact_root(-value, index) if index % 2 else None
        return None if root is None else -root
    parts = [_integer_root(part, int(index)) for part in (value.numerator, value.denominator)]
    return None if None in parts else Fraction(*parts)


def _integer_root(n: int, index: int) -> int | None:
    if index == 2:
        root = math.isqrt(n)
    else:
        root = 1 << -(-n.bit_length() // index)
        while (better := ((index - 1) * root + n // root ** (index - 1)) // index) < root:
            root = better
    return root if root**index == n else None


def _whole(function: Callable) -> Callable:
    def call(*values: Fraction) -> Fraction:
        if any(value.denominator != 1 for value in values):
            raise Undefined("whole numbers are needed")
        return Fraction(function(*map(int, values)))

    return call


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        return None
    if min(k, n - k) > MAX_FACTORIAL:
        raise Unreadable("too large a binomial")
    return Fraction(math.comb(int(n), int(k)))


# By name of the function: its exact value, or None where that is no rational number.
EXACT: dict[str, Callable[..., Fraction | None]] = {
    "abs": abs,
    "sqrt": _exact_root,
    "root": _exact_root,
    "factorial": _factorial,
    "binom": _binomial,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "max": max,
    "min": min,
    "gcd": _whole(math.gcd),
    "lcm": _whole(math.lcm),
}
