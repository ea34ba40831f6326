"""The functions, methods and operators that checks may use in this process.

The program chooses their arguments, and nothing in this process can be killed. So each function
that could make a huge result from small arguments has a limit.
"""

import ast
import builtins
import math
import operator
import string
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from estune.rewards.programs.exceptions import Failed

_MAX_LENGTH = 100_000  # of a sequence that is computed
_MAX_BITS = 100_000  # of an integer that is computed
_MAX_ARGUMENT = 1000  # of a function that grows fast, such as the factorial


def _product(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int) and len(one) * other > _MAX_LENGTH:
            raise Failed("a sequence that is too long")
    return left * right


def joined(separator: str, parts: Iterable[str]) -> str:
    texts = list(parts)
    if len(separator) * len(texts) > _MAX_LENGTH:
        raise Failed("a text that is too long")
    return separator.join(texts)


def _power(base: Any, exponent: Any) -> Any:
    is_integer = isinstance(base, int) and isinstance(exponent, int)
    if is_integer and (abs(exponent) > _MAX_BITS or base.bit_length() * abs(exponent) > _MAX_BITS):
        raise Failed("an integer that is too large")
    if isinstance(base, (Fraction, Decimal)) and not -_MAX_ARGUMENT < exponent < _MAX_ARGUMENT:
        raise Failed("a power that is too large")
    return base**exponent


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, (str, bytes)):
        raise Failed("text formatting with % is not allowed")
    return left % right


def _range(*bounds: int) -> range:
    result = range(*bounds)
    if (result.stop - result.start) // result.step > _MAX_LENGTH:
        raise Failed("a range that is too long")
    return result


def _with_small_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(*values: Any) -> Any:
        if not all(-_MAX_ARGUMENT < value < _MAX_ARGUMENT for value in values):
            raise Failed("an argument that is too large")
        return function(*values)

    return bounded


def _rounded(value: Any, digits: int | None = None) -> Any:
    if digits is not None and not -_MAX_ARGUMENT < digits < _MAX_ARGUMENT:
        raise Failed("too many digits")
    return round(value, digits)


_BUILTINS = """
    abs all any bool chr complex dict divmod enumerate filter float frozenset int isinstance iter
    len list map max min next ord repr reversed set sorted str sum tuple zip
"""  # not bytes: bytes(10**10) makes 10 GB of zeros
FUNCTIONS: dict[str, Any] = {
    **{name: getattr(builtins, name) for name in _BUILTINS.split()},
    "pow": _power,
    "range": _range,
    "round": _rounded,
    "type": lambda value: type(value),
}
_GROWING = ("comb", "factorial", "perm")
_MATH = {name: value for name, value in vars(math).items() if not name.startswith("_")}
_STRING = {name: value for name, value in vars(string).items() if isinstance(value, str)}
MODULES: dict[str, Mapping[str, Any]] = {
    "math": _MATH
    | {name: _with_small_arguments(_MATH[name]) for name in _GROWING}
    | {"pow": math.pow},
    "string": {name: value for name, value in _STRING.items() if not name.startswith("_")},
    "collections": {"Counter": Counter, "OrderedDict": OrderedDict, "deque": deque},
    "fractions": {"Fraction": Fraction},
}
METHODS = frozenset(
    """
    count endswith index isalpha isdigit islower isupper join lower split startswith strip title
    upper items keys values difference intersection issubset issuperset union
    """.split()
)
OWNERS = (str, bytes, list, tuple, set, frozenset, dict, range, deque, Counter, OrderedDict)
BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _product,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _remainder,
    ast.Pow: _power,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
