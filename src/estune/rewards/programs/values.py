"""Rebuild the values that a program returned, from JSON, as plain Python values.

JSON is used, not pickle, so that no code of the program's classes can run in this process. Types
that JSON lacks are written as {"tuple": […]} and so on by driver.py. Sizes are limited, because the
program chooses the values and nothing in this process can be killed.
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

# Many numbers of these types can have the same hash, and then make a set or dict very slow.
_COLLIDING = re.compile(r'\{"(?:int|fraction|decimal|complex)":')
_MAX_COLLIDING = 5000
_MAX_DEPTH = 50
_MAX_RANGE = 100_000  # elements of a range
_MAX_DIGITS = 20_000  # hexadecimal digits of an integer: arithmetic on longer ones is slow
_MAX_EXPONENT = 1000  # of a Decimal


class Opaque:
    """Stands for an object of another class. It is not None, and equals only itself."""

    def __bool__(self) -> bool:
        raise Failed("whether an object of the program's own class is true is unknown here")


def decoded(output: str) -> list[Any]:
    """Parse the JSON list that a test's process wrote; return [] if it is not an acceptable one."""
    if len(_COLLIDING.findall(output)) > _MAX_COLLIDING:
        return []
    try:
        values = json.loads(output, parse_int=_integer)
    except (ValueError, RecursionError):
        return []
    return values if isinstance(values, list) else []


def rebuilt(response: Any, *, allow_nan: bool) -> Any:
    """Return the value in the response to one request; every call returns new objects.

    Raises:
        Failed: the program raised an exception, or its response is not a valid value.
    """
    if not isinstance(response, dict) or "value" not in response:
        raise Failed("the program raised")
    if not allow_nan and _contains_nan(response["value"]):
        raise Failed("nan is never right")
    try:
        return _rebuild(response["value"], 0)
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise Failed(f"the program returned an invalid value ({error})") from None


def _rebuild(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, list):
        return [_rebuild(one, depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in _SCALARS:
        return _SCALARS[tag](content)
    return _COLLECTIONS[tag](_rebuild(one, depth + 1) for one in content)


def _contains_nan(value: Any) -> bool:
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
        raise ValueError("driver.py writes long integers in hexadecimal")
    return int(text)


def _hexadecimal(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(text, 16)


def _range(bounds: list[int]) -> range:
    made = range(*bounds)
    small = abs(made.start) < sys.maxsize and abs(made.stop) < sys.maxsize
    if not small or len(made) > _MAX_RANGE:
        raise ValueError("a range of too many numbers")
    return made


def _decimal(text: str) -> Decimal:
    made = Decimal(text)
    if made.is_nan() or abs(made.adjusted()) > _MAX_EXPONENT:
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
