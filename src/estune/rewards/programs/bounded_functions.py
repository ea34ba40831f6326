"""The functions, methods and operators that a test's expressions may use in this process.

A program chooses their arguments, and nothing here can be killed, so whatever can make something
large out of something small is bounded.
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

_LENGTH = 100_000  # of a sequence that is made here
_BITS = 100_000  # of an integer that is made here
_SMALL = 1000  # arguments of what grows fast


def _product(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int) and len(one) * other > _LENGTH:
            raise Failed("a sequence that is too long")
    return left * right


def joined(owner: str, parts: Iterable[str]) -> str:
    listed = list(parts)
    if len(owner) * len(listed) > _LENGTH:
        raise Failed("a text that is too long")
    return owner.join(listed)


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and (abs(exponent) > _BITS or base.bit_length() * abs(exponent) > _BITS):
        raise Failed("an integer that is too large")
    if isinstance(base, (Fraction, Decimal)) and not -_SMALL < exponent < _SMALL:
        raise Failed("a power that is too large")
    return base**exponent


def _remainder(left: Any, right: Any) -> Any:
    if isinstance(left, (str, bytes)):
        raise Failed("text is not formatted here")
    return left % right


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if (made.stop - made.start) // made.step > _LENGTH:
        raise Failed("a range that is too long")
    return made


def _of_small(function: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(*values: Any) -> Any:
        if not all(-_SMALL < value < _SMALL for value in values):
            raise Failed("an argument that is too large")
        return function(*values)

    return bounded


def _rounded(value: Any, digits: int | None = None) -> Any:
    if digits is not None and not -_SMALL < digits < _SMALL:
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
    "math": _MATH | {name: _of_small(_MATH[name]) for name in _GROWING} | {"pow": math.pow},
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
