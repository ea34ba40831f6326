"""Decide whether a reward function can be called in another process, and pickle it if so.

A function that computes its result from its arguments alone can be replaced by a copy in another
process. A function that holds a mutable object, such as a closure that counts its calls, an
object's method or a model, must be called in the trainer's process.
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
    """Return the pickled `function`, or a text that says why it must be called in this process."""
    if mutable := _mutable_part(function, set()):
        return f"it keeps {mutable}, which a copy would not share"
    try:  # cloudpickle also copies the code of lambdas, closures and functions of a script
        data: bytes = cloudpickle.dumps(function)
        return data
    except Exception as error:  # raised by any object that it refers to
        return f"it cannot be sent to another process ({described(error)})"


def _mutable_part(thing: Any, seen: set[int]) -> str:
    """Return "a list" or the like for a mutable object that `thing` is or holds; "" if none."""
    if id(thing) in seen or isinstance(thing, _CONSTANTS):
        return ""
    seen.add(id(thing))
    if isinstance(thing, (tuple, frozenset)):
        return next(filter(None, (_mutable_part(part, seen) for part in thing)), "")
    if isinstance(thing, functools.partial):
        parts = (thing.func, thing.args, tuple(thing.keywords.values()))
        return _mutable_part(parts, seen)
    if isinstance(thing, types.FunctionType):
        return _mutable_part(tuple(_objects_of(thing)), seen)
    if is_dataclass(thing) and getattr(type(thing), "__dataclass_params__").frozen:  # noqa: B009
        return _mutable_part(tuple(getattr(thing, each.name) for each in fields(thing)), seen)
    return f"a {type(thing).__name__}"


def _objects_of(function: types.FunctionType) -> list[Any]:
    """Return a function's default values, the function it wraps, and the variables it closes over.

    For a function of a script or notebook, the list includes the global variables that it uses,
    because cloudpickle copies them too.
    """
    objects = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    objects.append(getattr(function, "__wrapped__", None))
    for cell in function.__closure__ or ():
        try:
            objects.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    if function.__module__ == "__main__":
        variables = function.__globals__
        objects += [variables[name] for name in function.__code__.co_names if name in variables]
    return objects
