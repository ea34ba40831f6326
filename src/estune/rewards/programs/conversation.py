"""A split test runs in one process and the program in another, which converse.

What the test does with the program's functions is done in the program's process. Arguments go there
pickled, and plain values come back as JSON, so the program's code never runs in the test's process.
"""

from __future__ import annotations

import _pickle as pickle  # without the part in Python, which takes long to import
import builtins
import io
import itertools
import json
import marshal
import operator
import os
import time
import types
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

    from estune.rewards.programs.inside import ended, nowhere, prepare, received, run_program, send

_LARGEST = 1 << 20  # bytes of a value that the program hands back
_DEPTH = 40  # of nested values
_ITEMS = 10_000  # of an iterator
_EXACT = 1 << 53  # JSON's integers are exact up to here
_UNDECIDED = 3  # exit status of a test that asks for what only the program's process can do
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


# The program's side of a split test


def actor(request: dict[str, Any]) -> tuple[int, int, int]:
    """Fork a process that runs the program when it is first asked; return it and its pipes."""
    calls, answers = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(calls[0], 3)
        os.dup2(answers[1], 4)
        os.closerange(5, 256)  # the other processes' pipes
        _act(request, 3, 4)
    os.close(calls[0])
    os.close(answers[1])
    return child, calls[1], answers[0]


def _act(request: dict[str, Any], calls: int, answers: int) -> NoReturn:
    """Run the program and the test's definitions, then do what the test's process asks for."""
    try:
        os.dup2(nowhere(), 0)
        definitions = received(calls)
        prepare(request["seconds"], nowhere(), nowhere())
        names, kept = run_program(request), list[object]()
        names["_changing"] = lambda function: function  # functions of the test's call it
        exec(compile(definitions, "test.py", "exec"), names)
        send(answers, b"null")
        while True:
            send(answers, json.dumps(_answer(received(calls), names, kept)).encode())
    except BaseException:
        pass
    finally:
        os._exit(0)


def _answer(call: bytes, names: dict[str, Any], kept: list[object]) -> dict[str, Any]:
    """Make a call; return {"value": …, "given": …} or {"raised": …}.

    given: the arguments afterwards, where the test wants to know whether they were changed.
    """
    function, arguments, keywords, changing = _CallReader(call, names, kept).load()
    try:
        value = function(*arguments, **keywords)
    except Exception as error:
        return {"raised": type(error).__name__}
    after = arguments if changing else ()
    given = [_plain(one, kept) if isinstance(one, _CHANGEABLE) else None for one in after]
    return {"value": _plain(value, kept), "given": given}


class _CallReader(pickle.Unpickler):
    """Reads a call, in which the program's objects, and functions of the test, have numbers."""

    def __init__(self, call: bytes, names: dict[str, Any], kept: list[object]) -> None:
        super().__init__(io.BytesIO(call))
        self._names, self._kept = names, kept

    def persistent_load(self, found: tuple[str, Any]) -> Any:
        kind, what = found
        if kind == "name":
            return self._names[what] if what in self._names else getattr(builtins, what)
        if kind == "kept":
            return self._kept[what]
        if kind == "module":
            return __import__(what)
        if kind == "iterator":
            return iter(what)
        code, defaults, cells = what
        closure = tuple(map(types.CellType, cells))
        return types.FunctionType(marshal.loads(code), self._names, None, defaults, closure)


def _plain(value: Any, kept: list[object], depth: int = 0) -> Any:
    """Return `value` as JSON's kinds, with tags for others; other objects are kept here."""
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _EXACT else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"dict": _all(([key, value[key]] for key in value), kept, depth)}
    if isinstance(value, list):
        return _all(value, kept, depth)
    return _tagged(value, kept, depth)


def _tagged(value: Any, kept: list[object], depth: int) -> dict[str, Any]:
    for kind in (tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {kind.__name__: _all(value, kept, depth)}
    name = type(value).__name__
    if name in _VIEWS:
        return {_VIEWS[name]: _all(value, kept, depth)}
    if name == "Fraction":
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if name == "Decimal":
        return {"decimal": str(value)}
    if hasattr(value, "__next__"):
        return {"iterator": _all(_drawn(value), kept, depth)}
    kept.append(value)
    return {"object": len(kept) - 1}


def _drawn(iterator: Iterable[Any]) -> list[Any]:
    drawn = list(itertools.islice(iterator, _ITEMS + 1))
    if len(drawn) > _ITEMS:
        raise ValueError("an iterator without an end")
    return drawn


def _all(values: Iterable[Any], kept: list[object], depth: int) -> list[Any]:
    return [_plain(value, kept, depth + 1) for value in values]


# The test's side


def judged(
    request: dict[str, Any], test: dict[str, Any], actor: int, calls: int, answers: int
) -> dict[str, Any]:
    """Run a split test in a process of its own, with `actor` for the program; report on it."""
    until = time.monotonic() + request["seconds"]
    judge = os.fork()
    if judge == 0:
        _judge(request, test, calls, answers)
    os.close(calls)
    os.close(answers)
    status = ended(judge, until)
    ended(actor, 0)
    return {"timed_out": status is None, "status": status}


def _judge(request: dict[str, Any], test: dict[str, Any], calls: int, answers: int) -> NoReturn:
    status = 1
    try:
        prepare(request["seconds"], nowhere(), nowhere())
        program = _Program(calls, answers, test["nan"])
        if "random" in test["source"]:
            __import__("random").seed(0)  # the same draws every time
        send(calls, test["definitions"].encode())
        received(answers, _LARGEST)
        names = {name: _Remote(program, ("name", name)) for name in test["names"]}
        own: dict[str, Any] = {"__name__": "__main__", "_changing": _changing}
        exec(compile(test["source"], "test.py", "exec"), own | names)
        status = 0
    except _Undecided:
        status = _UNDECIDED
    except BaseException:
        pass  # the test failed, whatever was raised
    finally:
        os._exit(status)


class _Undecided(BaseException):
    """The test gives the program something that cannot be sent to its process."""


class _Failed(BaseException):
    """The test fails, and may not catch this."""


class _Program:
    """The program, as the test's process sees it."""

    def __init__(self, calls: int, answers: int, nan: bool) -> None:
        self._calls, self._answers, self._nan = calls, answers, nan

    def call(self, function: Any, *arguments: Any, _changing: bool = False, **keywords: Any) -> Any:
        """Call `function` in the program's process; it or an argument is the program's."""
        try:
            call = io.BytesIO()
            _CallWriter(call).dump((function, arguments, keywords, _changing))
        except Exception:
            raise _Undecided from None
        send(self._calls, call.getvalue())
        try:
            answer = json.loads(received(self._answers, _LARGEST))
            value = None if "raised" in answer else self._made(answer["value"])
            given = list(map(self._made, answer.get("given", ())))
        except Exception:
            raise _Failed from None
        if "raised" in answer:
            raise _error(answer["raised"])
        for argument, after in zip(arguments, given):  # noqa: B905
            if isinstance(argument, _CHANGEABLE):
                _replace(argument, after)
        return value

    def _made(self, value: Any) -> Any:
        """Rebuild a value that `_plain` took apart."""
        if isinstance(value, list):
            return list(map(self._made, value))
        if isinstance(value, float):
            return self._number(value)
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == "object":
            return _Remote(self, ("kept", content))
        if tag in _SCALARS:
            return self._number(_SCALARS[tag](content))
        return _COLLECTIONS[tag](map(self._made, content))

    def _number(self, value: Any) -> Any:
        if not self._nan and value != value:
            raise _Failed("nan is never right unless the test names it")
        return value


class _Remote:
    """A function, class or object of the program's: what is done with it is done there.

    It equals nothing but itself.
    """

    def __init__(self, program: _Program, address: tuple[str, Any]) -> None:
        vars(self).update(_program_=program, _address_=address)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._program_.call(self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program_.call(getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program_.call(setattr, self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._program_.call(operator.getitem, self, key)

    def __iter__(self) -> Any:
        return self._program_.call(iter, self)

    def __len__(self) -> Any:
        return self._program_.call(len, self)

    def __bool__(self) -> Any:
        return self._program_.call(bool, self)


class _CallWriter(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[str, Any] | None:
        if isinstance(value, _Remote):
            return value._address_  # type: ignore[no-any-return]
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if isinstance(value, type) and value.__module__ == "__main__":
            return "name", value.__name__  # a class of the test's, whose definition was sent
        if isinstance(value, types.FunctionType) and value.__module__ == "__main__":
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return "function", (marshal.dumps(value.__code__), value.__defaults__, cells)
        if hasattr(value, "__next__"):
            return "iterator", list(value)
        return None


def _changing(function: Any) -> Any:
    """Return `function` such that the program's changes of its arguments are seen in the test."""
    if not isinstance(function, _Remote):
        return function
    return lambda *arguments, **keywords: function(*arguments, _changing=True, **keywords)


def _replace(old: Any, new: Any) -> None:
    old.clear()
    old.extend(new) if isinstance(old, (list, deque)) else old.update(new)


def _error(name: str) -> Exception:
    """Return the built-in exception of this name, as far as it cannot end an iteration."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not name.startswith("Stop"):
        return kind()
    return RuntimeError(name)


def _fraction(parts: Sequence[str]) -> Any:
    from fractions import Fraction

    return Fraction(*(int(part, 16) for part in parts))


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


_CHANGEABLE = (list, dict, set, deque)
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
    "range": lambda bounds: range(*bounds),
    "fraction": _fraction,
    "decimal": _decimal,
}
_COLLECTIONS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "deque": deque,
    "iterator": lambda values: iter(list(values)),
    "keys": lambda keys: dict.fromkeys(keys).keys(),
    "items": lambda items: dict(items).items(),
    "values": lambda values: dict(enumerate(values)).values(),
}
