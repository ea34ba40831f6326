"""Which reward functions can be called in another process, and as which bytes.

A copy in another process serves for a function that computes its result from its arguments. One that carries something
mutable with it, such as a closure that counts its calls, an object's method or a model, is called where that is: here.
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

from estune.common.visible import one_line

# What does not change, or is the same in every process.
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    Fraction,
    Decimal,
    re.Pattern,
    PurePath,
)
_CONSTANTS = (*_PLAIN, type, types.ModuleType, types.BuiltinFunctionType)


def portable(function: Callable[..., Any]) -> bytes | str:
    """`function` as bytes that another process loads with pickle, or why it stays in this one."""
    if kept := _mutable(function, set()):
        return f"it keeps {kept}"
    try:
        data: bytes = cloudpickle.dumps(
            function
        )  # by value where it is a lambda, a closure, or of a script or notebook
        return data
    except Exception as error:  # whatever the objects that it refers to raise when they are pickled
        return (
            f"it cannot be sent to another process ({type(error).__name__}: {one_line(error, 120)})"
        )


def _mutable(thing: Any, seen: set[int]) -> str:
    """What `thing` carries along that can change, or nothing."""
    if id(thing) in seen or isinstance(thing, _CONSTANTS):
        return ""
    seen.add(id(thing))
    if isinstance(thing, (tuple, frozenset)):
        return next(filter(None, (_mutable(part, seen) for part in thing)), "")
    if isinstance(thing, functools.partial):
        return _mutable((thing.func, thing.args, tuple(thing.keywords.values())), seen)
    if isinstance(thing, types.FunctionType):
        return _mutable_of_function(thing, seen)
    if is_dataclass(thing) and getattr(type(thing), "__dataclass_params__").frozen:  # noqa: B009
        return _mutable(tuple(getattr(thing, each.name) for each in fields(thing)), seen)
    return f"a {type(thing).__name__}"


def _mutable_of_function(function: types.FunctionType, seen: set[int]) -> str:
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return _mutable((*_cells(function), *defaults, getattr(function, "__wrapped__", None)), seen)


def _cells(function: types.FunctionType) -> list[Any]:
    """What a closure refers to; in a script or notebook also its global variables, which are sent with it."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not yet assigned
            continue
    if function.__module__ == "__main__":
        cells += [
            function.__globals__[name]
            for name in function.__code__.co_names
            if name in function.__globals__
        ]
    return cells
