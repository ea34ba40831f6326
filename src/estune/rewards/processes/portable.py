"""Which reward functions can be called in another process, and as which bytes.

A copy in another process can stand in for a function that computes its result from its arguments.
A function that holds something mutable, such as a closure that counts its calls, an object's method
or a model, is called in the trainer's process.
"""

import functools
import re
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import cloudpickle

from estune.rewards.call import described

_NUMBERS = (bool, int, float, complex, range, Fraction, Decimal)
_TEXTS = (str, bytes, re.Pattern, PurePath)
_SAME_EVERYWHERE = (type, types.ModuleType, types.BuiltinFunctionType)
_CONSTANTS = (type(None), *_NUMBERS, *_TEXTS, *_SAME_EVERYWHERE)


def portable(function: Callable[..., Any]) -> bytes | str:
    """Return `function` as bytes that another process can unpickle, or why it stays in this one."""
    if kept := _mutable(function, set()):
        return f"it keeps {kept}"
    try:  # a lambda, a closure or a function of a script or notebook is sent by value
        data: bytes = cloudpickle.dumps(function)
        return data
    except Exception as error:  # raised by any object that it refers to
        return f"it cannot be sent to another process ({described(error)})"


def _mutable(thing: Any, seen: set[int]) -> str:
    """Name something mutable that `thing` holds; return "" if there is none."""
    if id(thing) in seen or isinstance(thing, _CONSTANTS):
        return ""
    seen.add(id(thing))
    if isinstance(thing, (tuple, frozenset)):
        return next(filter(None, (_mutable(part, seen) for part in thing)), "")
    if isinstance(thing, functools.partial):
        return _mutable((thing.func, thing.args, tuple(thing.keywords.values())), seen)
    if isinstance(thing, types.FunctionType):
        return _mutable(tuple(_held(thing)), seen)
    if is_dataclass(thing) and getattr(type(thing), "__dataclass_params__").frozen:  # noqa: B009
        return _mutable(tuple(getattr(thing, each.name) for each in fields(thing)), seen)
    return f"a {type(thing).__name__}"


def _held(function: types.FunctionType) -> list[Any]:
    """List what a function holds: defaults, a wrapped function, and variables around it.

    Global variables count for a function of a script or notebook, since they are sent with it.
    """
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held.append(getattr(function, "__wrapped__", None))
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    if function.__module__ == "__main__":
        variables = function.__globals__
        held += [variables[name] for name in function.__code__.co_names if name in variables]
    return held
