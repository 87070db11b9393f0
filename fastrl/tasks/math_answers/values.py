r"""The value of a tree (`latex.parse`), and whether two trees have the same value. No tolerance is ever chosen.

Rational arithmetic is exact (`Fraction`). Everything else is computed twice, with 60 and with 400 digits: two values
are equal when their difference vanishes as the digits grow. Expressions with variables are compared at a few rational
points of all signs. At each, either both or neither must have a value, and the values must be equal; those of
polynomials are exact.

Sizes are bounded before anything is computed: a power by its logarithm, a series by its length. `Unreadable` says that
a value is out of reach.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache

from .exact import EXACT, Undefined
from .tokens import TRIGONOMETRIC
from .trees import Tree, Unreadable, symbols

MAX_BITS = 60_000  # of an exact number
MAX_EXPONENT = 2**60  # of an inexact power, in bits
MAX_ARGUMENT = 10**300  # of an inexact function
MAX_TERMS = 1000  # of a series
MAX_OPERATIONS = 20_000
DIGITS = (60, 400)

Value = object  # Fraction, mpf or mpc
Point = dict[str, Fraction]


@cache
def context(digits: int):
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    return context


def evaluate(tree: Tree, digits: int, point: Point | None = None, *, is_scaled: bool = False) -> Value:
    """The value at `point`; is_scaled: a percent is 1/100 and a degree pi/180, else both are 1.

    Raises Undefined (0/0) and Unreadable (no number, or too large a one).
    """
    return _Evaluation(digits, point or {}, is_scaled).value(tree)


def evaluate_inexactly(tree: Tree) -> Value:
    """The value as an mpf or mpc of 60 digits, for sorting."""
    return _inexact(evaluate(tree, DIGITS[0]), context(DIGITS[0]))


def is_same(left: Callable[[int], Value], right: Callable[[int], Value]) -> bool:
    """Whether two values, each a function of the number of digits, are equal. Undefined where either is."""
    values = left(DIGITS[0]), right(DIGITS[0])
    if all(isinstance(value, Fraction) for value in values):
        return values[0] == values[1]
    coarse, size = _difference(*values, DIGITS[0])
    if coarse > 1e-20 and coarse > size * 1e-20:
        return False
    coarse = coarse or context(DIGITS[0]).mpf(10) ** -DIGITS[0]
    fine, size = _difference(left(DIGITS[1]), right(DIGITS[1]), DIGITS[1])
    return bool(fine <= max(size, coarse) * context(DIGITS[1]).mpf(10) ** (2 * DIGITS[0] - DIGITS[1]))


def are_equal(gold: Tree, answer: Tree, *, is_scaled: tuple[bool, bool] = (False, False)) -> bool:
    """Whether two expressions are equal: everywhere that both are real, and defined at the same points."""
    names = sorted(symbols(gold) | symbols(answer))
    if not names:
        return _agree(gold, answer, {}, is_scaled, must_be_real=False) is True
    for must_be_real in (True, False):
        verdicts = [_agree(gold, answer, point, is_scaled, must_be_real) for point in points(names)]
        if False in verdicts:
            return False
        if True in verdicts:
            return True
    return False


def points(names: list[str]) -> list[Point]:
    """Rational points: all positive, all negative, mixed, large, small; different for every name."""
    signs = (lambda i: 1, lambda i: -1, lambda i: (-1) ** i, lambda i: (-1) ** (i + 1), lambda i: 1, lambda i: 1)
    sizes = (Fraction(1), Fraction(1), Fraction(1), Fraction(7, 3), Fraction(1, 23), Fraction(31))
    return [
        {name: sign(i) * size * Fraction(17 + 6 * i + k, 11 + 2 * i) for i, name in enumerate(names)}
        for k, (sign, size) in enumerate(zip(signs, sizes, strict=True))
    ]


def _agree(gold, answer, point, is_scaled, must_be_real) -> bool | None:
    """Whether both have one value at `point`; None where neither has one, or neither a real one where it must be."""
    states = []
    for tree, scaled in zip((gold, answer), is_scaled, strict=True):
        try:
            states.append(_is_real(evaluate(tree, DIGITS[0], point, is_scaled=scaled)) or not must_be_real)
        except Undefined:
            states.append(False)
    if states != [True, True]:
        return False if any(states) else None
    return is_same(
        lambda digits: evaluate(gold, digits, point, is_scaled=is_scaled[0]),
        lambda digits: evaluate(answer, digits, point, is_scaled=is_scaled[1]),
    )


def _is_real(value: Value) -> bool:
    return isinstance(value, Fraction) or abs(value.imag) <= abs(value) * 1e-40


def _inexact(value: Value, mp) -> Value:
    return mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _difference(left: Value, right: Value, digits: int) -> tuple[Value, Value]:
    """(|left - right|, the larger of |left| and |right|)."""
    left, right = (_inexact(value, context(digits)) for value in (left, right))
    return abs(left - right), max(abs(left), abs(right))


class _Evaluation:
    def __init__(self, digits: int, point: Point, is_scaled: bool):
        self.digits, self.point, self.is_scaled, self.num_operations = digits, point, is_scaled, 0

    @property
    def mp(self):
        return context(self.digits)

    def value(self, tree: Tree) -> Value:
        self.num_operations += 1
        if self.num_operations > MAX_OPERATIONS:
            raise Unreadable("too much to compute")
        method = getattr(self, f"_{tree[0]}", None)
        if method is None:
            raise Unreadable(f"a {tree[0]} is no number")
        try:
            value = method(*tree[1:])
        except (ZeroDivisionError, ValueError, OverflowError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Undefined(str(error)) from error
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise Unreadable("too large a number")
        elif not self.mp.isfinite(value):
            raise Undefined("infinite")
        return value

    def _number(self, value):
        return value

    def _symbol(self, name):
        if name in self.point:
            return self.point[name]
        constants = {"pi": lambda: +self.mp.pi, "e": lambda: +self.mp.e, "i": lambda: self.mp.mpc(0, 1)}
        if name not in constants:
            raise Unreadable(f"{name} has no value")
        return constants[name]()

    def _group(self, opening, closing, *items):
        if len(items) != 1 or opening == "\\{":
            raise Unreadable("a tuple is no number")
        return self.value(items[0])

    def _unit(self, tree, name):
        value = self.value(tree)
        if not self.is_scaled or name not in ("percent", "degree"):
            return value
        return value / 100 if name == "percent" else self._mul_values(value, self.mp.pi / 180)

    def _neg(self, tree):
        return -self.value(tree)

    def _pair(self, left, right):
        left, right = self.value(left), self.value(right)
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return left, right
        return _inexact(left, self.mp), _inexact(right, self.mp)

    def _mul_values(self, left, right):
        return _inexact(left, self.mp) * _inexact(right, self.mp)

    def _add(self, left, right):
        left, right = self._pair(left, right)
        return left + right

    def _mul(self, left, right):
        left, right = self._pair(left, right)
        return left * right

    def _div(self, left, right):
        left, right = self._pair(left, right)
        return left / right

    def _pow(self, base, exponent):
        return self._power(self.value(base), self.value(exponent))

    def _power(self, base, exponent):
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if base == 0:
                if exponent <= 0:
                    raise Undefined("0 to a power that is not positive")
                return Fraction(0)
            if abs(base) == 1 and exponent.denominator == 1:
                return base if exponent % 2 else Fraction(1)
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if exponent.denominator == 1 and abs(exponent) * bits <= MAX_BITS:
                return base ** int(exponent)
            if base < 0 and exponent.denominator % 2:  # the real root
                sign = -1 if exponent.numerator % 2 else 1
                return sign * self._power(-base, exponent)
        base, exponent = _inexact(base, self.mp), _inexact(exponent, self.mp)
        if abs(exponent) * (1 + abs(self.mp.log(base)) if base else 1) > MAX_EXPONENT:
            raise Unreadable("too large a power")
        return base**exponent

    def _series(self, kind, name, first, last, body):
        first, last = self.value(first), self.value(last)
        if not all(isinstance(end, Fraction) and end.denominator == 1 for end in (first, last)):
            raise Unreadable("a series without whole ends")
        if last - first > MAX_TERMS:
            raise Unreadable("too long a series")
        total, outer = Fraction(kind == "prod"), self.point
        for index in range(int(first), int(last) + 1):
            self.point = {**outer, name: Fraction(index)}
            number = ("number", total) if isinstance(total, Fraction) else ("known", total)
            total = (self._mul if kind == "prod" else self._add)(number, body)
        self.point = outer
        return total

    def _known(self, value):
        return value

    def _call(self, name, *arguments):
        if name in TRIGONOMETRIC:
            outer, self.is_scaled = self.is_scaled, True
            values = [self.value(argument) for argument in arguments]
            self.is_scaled = outer
        else:
            values = [self.value(argument) for argument in arguments]
        exact = EXACT.get(name)
        if exact is not None and all(isinstance(value, Fraction) for value in values):
            result = exact(*values)
            if result is not None:
                return result
        return self._inexact_call(name, [_inexact(value, self.mp) for value in values])

    def _inexact_call(self, name, values):
        mp, size = self.mp, max(map(abs, values))
        if name not in _GROWING_SLOWLY and size > (MAX_EXPONENT if name in ("exp", "sinh", "cosh") else MAX_ARGUMENT):
            raise Unreadable(f"{name} of too large a number")
        if name in ("floor", "ceil", "max", "min"):
            return self._order(name, values)
        if name == "log":
            return mp.log(values[0]) / mp.log(values[1] if len(values) > 1 else mp.mpf(10))
        if name == "root":
            return self._power(values[0], 1 / values[1])
        function = {"abs": abs, "cis": mp.expj}.get(name) or getattr(mp, _NAMES.get(name, name), None)
        if function is None:
            raise Unreadable(f"no {name} of such numbers")
        return function(*values)

    def _order(self, name, values):
        if any(value.imag for value in values):
            raise Undefined("complex numbers have no order")
        values = [value.real for value in values]
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        nearest = self.mp.nint(values[0])
        is_whole = abs(values[0] - nearest) < self.mp.mpf(10) ** -30
        return Fraction(int(nearest if is_whole else getattr(self.mp, name)(values[0])))


_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "binom": "binomial"}
_GROWING_SLOWLY = ("abs", "sqrt", "root", "ln", "log", "max", "min")
