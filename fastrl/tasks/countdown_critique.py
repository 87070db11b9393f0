"""What is wrong with a Countdown expression, in the signs of an expression: a model that knows no words can read it.

-11       its numbers are right, and this is its value: of a correct one, the target
(-7+5)    it uses a 7 too often and lacks a 5
()        it is no expression
"""

from collections import Counter

from .expression import ExpressionError, evaluate, parse_expression


def critique(completion: str, row: dict) -> str:
    """Wrong numbers are named before the value: each as often as it is too much (−) or missing (+), in rising order."""
    try:
        used, postfix = parse_expression(completion)
    except ExpressionError:
        return "()"
    found, wanted = Counter(used), Counter(row["numbers"])
    surplus, missing = sorted((found - wanted).elements()), sorted((wanted - found).elements())
    named = "".join([*(f"-{number}" for number in surplus), *(f"+{number}" for number in missing)])
    return f"({named})" if named else str(evaluate(postfix))
