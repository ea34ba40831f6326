"""Functions, methods and operators that a test's expressions may use here.

The values that they get are a program's choice, and nothing here can be killed, so whatever makes
much out of little is bounded.
"""

import ast
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


def _type(value: Any) -> type:
    return type(value)


FUNCTIONS: dict[str, Any] = {
    **{
        each.__name__: each
        for each in (
            abs,
            all,
            any,
            bool,
            bytes,
            chr,
            complex,
            dict,
            divmod,
            enumerate,
            filter,
            float,
        )
    },
    **{
        each.__name__: each
        for each in (frozenset, int, isinstance, iter, len, list, map, max, min, next, ord, repr)
    },
    **{each.__name__: each for each in (reversed, set, sorted, str, sum, tuple, zip)},
    "pow": _power,
    "range": _range,
    "round": _rounded,
    "type": _type,
}
del FUNCTIONS["bytes"]  # bytes(10**10) is 10 GB of zeros
_GROWING = ("comb", "factorial", "perm")
_MATH = {name: value for name, value in vars(math).items() if not name.startswith("_")}
MODULES: dict[str, Mapping[str, Any]] = {
    "math": _MATH | {name: _of_small(_MATH[name]) for name in _GROWING} | {"pow": math.pow},
    "string": {
        name: value
        for name, value in vars(string).items()
        if isinstance(value, str) and not name.startswith("_")
    },
    "collections": {"Counter": Counter, "OrderedDict": OrderedDict, "deque": deque},
    "fractions": {"Fraction": Fraction},
}
_OF_TEXT = "count endswith index isalpha isdigit islower isupper join lower split startswith strip title upper"
_OF_COLLECTIONS = "items keys values difference intersection issubset issuperset union"
METHODS = frozenset([*_OF_TEXT.split(), *_OF_COLLECTIONS.split()])
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
