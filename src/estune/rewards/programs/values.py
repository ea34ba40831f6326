"""The values that a program's process handed back, rebuilt here from JSON as plain Python values.

So no code of the program's objects ever runs here. The tags are those of `driver.py`.
"""

import json
import math
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from estune.rewards.programs.exceptions import Failed

_RARE = re.compile(r'\{"(?:int|fraction|decimal|complex)":')  # can be made to share one hash
_MANY = 5000
_DEPTH = 50
_RANGE = 100_000  # numbers that a range may stand for
_DIGITS = 20_000  # hexadecimal digits of an integer: arithmetic on longer ones is slow
_EXPONENT = 1000  # of a Decimal


class Opaque:
    """Stands for an object without a plain form. It is not None and equals nothing but itself."""

    def __bool__(self) -> bool:
        raise Failed("whether an object of the program's own class is true is unknown here")


def decoded(said: str) -> list[Any]:
    """Return the values that a test's process handed back, still JSON; [] for anything else."""
    if len(_RARE.findall(said)) > _MANY:
        return []
    try:
        values = json.loads(said, parse_int=_integer)
    except (ValueError, RecursionError):
        return []
    return values if isinstance(values, list) else []


def plain(said: Any, *, nan: bool) -> Any:
    """Return the value of one request, as new objects with every call.

    nan: whether the test allows nan.

    Raises:
        Failed: the program raised, or what was handed back is no value.
    """
    if not isinstance(said, dict) or "value" not in said:
        raise Failed("the program raised")
    if not nan and _holds_nan(said["value"]):
        raise Failed("nan is never right")
    try:
        return _made(said["value"], 0)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise Failed(f"what was handed back is no value ({error})") from None


def _made(value: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, list):
        return [_made(one, depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in _SCALARS:
        return _SCALARS[tag](content)
    return _COLLECTIONS[tag](_made(one, depth + 1) for one in content)


def _holds_nan(value: Any) -> bool:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, float) and math.isnan(one):
            return True
        if isinstance(one, (list, dict)):
            pending.extend(one.values() if isinstance(one, dict) else one)
    return False


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError("integers of more digits are written as hexadecimal ones")
    return int(text)


def _hexadecimal(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError("an integer of too many digits")
    return int(text, 16)


def _range(bounds: list[int]) -> range:
    made = range(*bounds)
    small = abs(made.start) < sys.maxsize and abs(made.stop) < sys.maxsize
    if not small or len(made) > _RANGE:
        raise ValueError("a range of too many numbers")
    return made


def _decimal(text: str) -> Decimal:
    made = Decimal(text)
    if made.is_nan() or abs(made.adjusted()) > _EXPONENT:
        raise ValueError("a decimal of too large an exponent")
    return made


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": _hexadecimal,
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "range": _range,
    "fraction": lambda parts: Fraction(*map(_hexadecimal, parts)),
    "decimal": _decimal,
    "object": lambda name: Opaque(),
}
_COLLECTIONS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "deque": deque,
    "iterator": iter,
    "keys": lambda keys: dict.fromkeys(keys).keys(),
    "items": lambda items: dict(items).items(),
    "values": lambda values: dict(enumerate(values)).values(),
}
