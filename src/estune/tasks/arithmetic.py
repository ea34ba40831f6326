"""The exact value of an arithmetic expression that a model wrote, safe for any text.

`eval` would run code and round divisions. Here Python's own parser reads the text, after a check
that bounds its size by the given numbers, and only the four operators are computed, in fractions.
"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

MAX_DEPTH = 100

_SYMBOLS = re.compile(r"[-+*/() 0-9]+")
# Powers, whole division, empty brackets, adjacent values, and two signs before a value.
_MISPLACED = re.compile(
    r"\*\*|//|\( *\)|[0-9)] *\(|\) *[0-9]|[0-9] +[0-9]|(?:^|[(*/]) *[-+] *[-+]|[-+] *[-+] *[-+]"
)
_OPERATORS: dict[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def value_of(text: str, numbers: Iterable[int]) -> Fraction | None:
    """Return the value of `text` if it is an expression that uses each number exactly once.

    Otherwise, after a division by zero, and if brackets nest deeper than MAX_DEPTH, return None.
    An expression consists of ASCII digits, + - * / ( ) and spaces. A number or a bracket may have
    one sign; a number has no leading zero; two adjacent values are no product.
    """
    text = text.strip(" ")
    # As text, so that a number of 100,000 digits is refused without a conversion.
    given = Counter(map(str, numbers))
    if not _SYMBOLS.fullmatch(text) or Counter(re.findall("[0-9]+", text)) != given:
        return None
    if _MISPLACED.search(text) or _depth(text) > MAX_DEPTH:
        return None
    try:
        return _value(ast.parse(text, mode="eval"))
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _depth(text: str) -> int:
    """Return how deep brackets nest in `text`."""
    deepest = depth = 0
    for symbol in text:
        depth += (symbol == "(") - (symbol == ")")
        deepest = max(deepest, depth)
    return deepest


def _value(tree: ast.Expression) -> Fraction:
    """Compute children before parents; recursion would not reach a thousand numbers."""
    values: dict[ast.AST, Fraction] = {}
    for node in reversed(list(ast.walk(tree.body))):
        if isinstance(node, ast.Constant):
            values[node] = Fraction(node.value)  # type: ignore[arg-type]
        elif isinstance(node, (ast.BinOp, ast.UnaryOp)):
            parts = [values[part] for part in ast.iter_child_nodes(node) if part in values]
            values[node] = _OPERATORS[type(node.op)](*parts)
    return values[tree.body]
