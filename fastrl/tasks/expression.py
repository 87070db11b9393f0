"""Arithmetic in plain ASCII: whole numbers, + - *, parentheses, spaces between tokens. Nothing is run as code.

    expression = term {("+" | "-") term}      term = factor {"*" factor}      factor = number | "(" expression ")"

There is no unary minus, no leading zero, no juxtaposition (`2(3)`) and no digit outside 0-9. Parsing is one pass with
two explicit stacks: linear in the text and independent of how deep the parentheses nest.
"""

import re

MAX_LENGTH = 512  # characters; sixteen 12-digit numbers with operators and spare parentheses fit
MAX_DIGITS = 12  # of one number

_TOKEN = re.compile(rf" *([0-9]{{1,{MAX_DIGITS}}}|[-+*()])")
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2}


class ExpressionError(ValueError):
    """The text is not an expression of this grammar."""


def parse_expression(text: str) -> tuple[list[int], list[int | str]]:
    """The numbers of `text` in order of appearance, and the expression in postfix order (numbers and "+", "-", "*").

    Raises ExpressionError for everything that is not exactly one expression.
    """
    numbers: list[int] = []
    postfix: list[int | str] = []
    operators: list[str] = []
    expects_operand = True
    for token in _tokens(text):
        is_operand_start = token == "(" or token.isdigit()
        if is_operand_start != expects_operand:
            raise ExpressionError(f"unexpected {token!r}")
        if token == "(":
            operators.append(token)
        elif token == ")":
            while operators and operators[-1] != "(":
                postfix.append(operators.pop())
            if not operators:
                raise ExpressionError("unmatched ')'")
            operators.pop()
        elif token in _PRECEDENCE:
            while operators and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[token]:
                postfix.append(operators.pop())
            operators.append(token)
            expects_operand = True
        else:
            numbers.append(_number(token))
            postfix.append(numbers[-1])
            expects_operand = False
    if expects_operand or "(" in operators:
        raise ExpressionError("the expression ends too early")
    return numbers, postfix + operators[::-1]


def evaluate(postfix: list[int | str]) -> int:
    """The value of a postfix expression from `parse_expression`."""
    stack: list[int] = []
    for token in postfix:
        if isinstance(token, int):
            stack.append(token)
            continue
        right, left = stack.pop(), stack.pop()
        stack.append(left + right if token == "+" else left - right if token == "-" else left * right)
    return stack[0]


def combine(operator: str, left: tuple[int, str, int], right: tuple[int, str, int]) -> tuple[int, str, int]:
    """Join two written expressions (value, text, precedence) by an operator, with no parenthesis that is not needed.

    The precedence of a text is that of its outermost operator, 3 for a number: `a-(b-c)` keeps its parentheses,
    `a+(b-c)` becomes `a+b-c`, which has the same value.
    """
    (x, x_text, x_precedence), (y, y_text, y_precedence) = left, right
    precedence = _PRECEDENCE[operator]
    if x_precedence < precedence:
        x_text = f"({x_text})"
    if y_precedence < precedence or (operator == "-" and y_precedence == 1):
        y_text = f"({y_text})"
    value = x + y if operator == "+" else x - y if operator == "-" else x * y
    return value, f"{x_text}{operator}{y_text}", precedence


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    tokens = []
    position = 0
    end = len(text.rstrip(" "))
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r}")
        tokens.append(match.group(1))
        position = match.end()
    return tokens


def _number(digits: str) -> int:
    if len(digits) > 1 and digits[0] == "0":
        raise ExpressionError(f"leading zero in {digits!r}")
    return int(digits)
