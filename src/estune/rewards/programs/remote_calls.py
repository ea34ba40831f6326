"""Run a split test in one process and the program in another, and let the test call the program.

The test's process sends each call to the program's process, with pickled arguments, and receives
the result as JSON. So no code of the program ever runs in the test's process, where it could read
the expected values or change how they are compared.
"""

from __future__ import annotations

import _pickle as pickle  # the part of pickle in C; the rest takes long to import
import builtins
import io
import itertools
import json
import marshal
import operator
import os
import time
import types
from collections import deque, namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

    from estune.rewards.programs.inside import (
        open_null,
        prepare,
        receive,
        run_program,
        send,
        wait_and_end,
    )

_MAX_MESSAGE = 1 << 20  # bytes of a message from the program's process
_MAX_DEPTH = 40  # of nested values
_MAX_ITEMS = 10_000  # that are taken from an iterator
_MAX_EXACT = 1 << 53  # JSON readers represent integers exactly up to here
_MUST_RUN_WHOLE = 3  # exit status of a test that only the program's process can run
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


# The program's process

ProgramProcess = namedtuple("ProgramProcess", ("pid", "calls", "results"))


def start_program_process(request: dict[str, Any]) -> ProgramProcess:
    """Fork a process that will run the program and then the calls of a test.

    Its pipes are `calls`, to the process, and `results`, from it. It waits for the first message
    before it runs the program.
    """
    calls_reader, calls_writer = os.pipe()
    results_reader, results_writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(calls_reader, 3)
        os.dup2(results_writer, 4)
        os.closerange(5, 256)  # else the program could write to the pipes of other processes
        _serve_calls(request, 3, 4)
    os.close(calls_reader)
    os.close(results_writer)
    return ProgramProcess(child, calls_writer, results_reader)


def _serve_calls(request: dict[str, Any], calls: int, results: int) -> NoReturn:
    """Run the program and the test's definitions, then each call that the test's process sends."""
    try:
        os.dup2(open_null(), 0)
        definitions = receive(calls)
        prepare(request["seconds"], open_null(), open_null())
        names, objects = run_program(request), list[object]()
        # Functions of the test that are run here may use it: see split.py.
        names["_update_arguments"] = lambda function: function
        exec(compile(definitions, "test.py", "exec"), names)
        send(results, b"null")  # the definitions have been run
        while True:
            send(results, json.dumps(_result(receive(calls), names, objects)).encode())
    except BaseException:
        pass
    finally:
        os._exit(0)


def _result(call: bytes, names: dict[str, Any], objects: list[object]) -> dict[str, Any]:
    """Make a call; return {"value": …, "arguments": …} or {"raised": name of the exception}.

    arguments: the mutable arguments after the call, if the test needs to see their changes.
    """
    function, arguments, keywords, update_arguments = _CallReader(call, names, objects).load()
    try:
        value = function(*arguments, **keywords)
    except Exception as error:
        return {"raised": type(error).__name__}
    after = arguments if update_arguments else ()
    changed = [_plain(one, objects) if isinstance(one, _MUTABLE) else None for one in after]
    return {"value": _plain(value, objects), "arguments": changed}


class _CallReader(pickle.Unpickler):
    """Reads a call that a _CallWriter wrote.

    names: the global names of the program.
    objects: the program's objects that the test has got so far; it refers to them by their index.
    """

    def __init__(self, call: bytes, names: dict[str, Any], objects: list[object]) -> None:
        super().__init__(io.BytesIO(call))
        self._names, self._objects = names, objects

    def persistent_load(self, reference: tuple[str, Any]) -> Any:
        kind, content = reference
        if kind == "name":
            return self._names[content] if content in self._names else getattr(builtins, content)
        if kind == "object":
            return self._objects[content]
        if kind == "module":
            return __import__(content)
        if kind == "iterator":
            return iter(content)
        code, defaults, cells = content  # of a function that the test defines
        closure = tuple(map(types.CellType, cells))
        return types.FunctionType(marshal.loads(code), self._names, None, defaults, closure)


def _plain(value: Any, objects: list[object], depth: int = 0) -> Any:
    """Return `value` as types that JSON has.

    Other types become a dictionary with the type's name as the only key, such as {"tuple": […]}. An
    object of any other class is appended to `objects`, and {"object": its index} stands for it.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _MAX_EXACT else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"dict": _plain_items(([key, value[key]] for key in value), objects, depth)}
    if isinstance(value, list):
        return _plain_items(value, objects, depth)
    return _tagged(value, objects, depth)


def _tagged(value: Any, objects: list[object], depth: int) -> dict[str, Any]:
    for kind in (tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {kind.__name__: _plain_items(value, objects, depth)}
    name = type(value).__name__
    if name in _VIEWS:
        return {_VIEWS[name]: _plain_items(value, objects, depth)}
    if name == "Fraction":
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if name == "Decimal":
        return {"decimal": str(value)}
    if hasattr(value, "__next__"):
        return {"iterator": _plain_items(_first_items(value), objects, depth)}
    objects.append(value)
    return {"object": len(objects) - 1}


def _first_items(iterator: Iterable[Any]) -> list[Any]:
    items = list(itertools.islice(iterator, _MAX_ITEMS + 1))
    if len(items) > _MAX_ITEMS:
        raise ValueError("an iterator without an end")
    return items


def _plain_items(values: Iterable[Any], objects: list[object], depth: int) -> list[Any]:
    return [_plain(value, objects, depth + 1) for value in values]


# The test's process


def run_split_test(
    request: dict[str, Any], test: dict[str, Any], program: ProgramProcess
) -> dict[str, Any]:
    """Run a split test in a child process that calls `program`, and report its result."""
    deadline = time.monotonic() + request["seconds"]
    child = os.fork()
    if child == 0:
        _run_test(request, test, program)
    os.close(program.calls)
    os.close(program.results)
    status = wait_and_end(child, deadline)
    wait_and_end(program.pid, deadline=0)
    return {"timed_out": status is None, "status": status}


def _run_test(request: dict[str, Any], test: dict[str, Any], process: ProgramProcess) -> NoReturn:
    status = 1
    try:
        prepare(request["seconds"], open_null(), open_null())
        program = _Program(process, test["nan"])
        if "random" in test["source"]:
            __import__("random").seed(0)  # so that all members get the same random numbers
        send(process.calls, test["definitions"].encode())
        receive(process.results, _MAX_MESSAGE)  # the definitions have been run
        names = {name: _Remote(program, ("name", name)) for name in test["names"]}
        own: dict[str, Any] = {"__name__": "__main__", "_update_arguments": _update_arguments}
        exec(compile(test["source"], "test.py", "exec"), own | names)
        status = 0
    except _MustRunWhole:
        status = _MUST_RUN_WHOLE
    except BaseException:
        pass  # any other exception fails the test
    finally:
        os._exit(status)


class _MustRunWhole(BaseException):
    """The test passes something to the program that cannot be sent to its process."""


class _TestFailed(BaseException):
    """The test fails. This is not an Exception, so that the test's own `try` does not catch it."""


class _Program:
    """Makes calls in the program's process.

    allow_nan: whether the program may return nan.
    """

    def __init__(self, process: ProgramProcess, allow_nan: bool) -> None:
        self._process, self._allow_nan = process, allow_nan

    def call(
        self, function: Any, *arguments: Any, _update_arguments: bool = False, **keywords: Any
    ) -> Any:
        """Call `function` in the program's process, and return its value.

        _update_arguments: whether `arguments` are changed as the program changed its copies.
        """
        try:
            call = io.BytesIO()
            _CallWriter(call).dump((function, arguments, keywords, _update_arguments))
        except Exception:  # pickle runs methods of the test's objects, which may raise anything
            raise _MustRunWhole from None
        send(self._process.calls, call.getvalue())
        try:
            result = json.loads(receive(self._process.results, _MAX_MESSAGE))
            value = None if "raised" in result else self._rebuilt(result["value"])
            changed = list(map(self._rebuilt, result.get("arguments", ())))
        except Exception:  # the program's process has ended, or the program forged its result
            raise _TestFailed from None
        if "raised" in result:
            raise _exception(result["raised"])
        for argument, after in zip(arguments, changed):  # noqa: B905
            if isinstance(argument, _MUTABLE):
                _replace_contents(argument, after)
        return value

    def _rebuilt(self, value: Any) -> Any:
        """Return the value that `_plain` turned into JSON's types."""
        if isinstance(value, list):
            return list(map(self._rebuilt, value))
        if isinstance(value, float):
            return self._checked_number(value)
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == "object":
            return _Remote(self, ("object", content))
        if tag in _SCALARS:
            return self._checked_number(_SCALARS[tag](content))
        return _COLLECTIONS[tag](map(self._rebuilt, content))

    def _checked_number(self, value: Any) -> Any:
        if not self._allow_nan and value != value:
            raise _TestFailed("nan is never right unless the test names it")
        return value


class _Remote:
    """Stands for a function, class or object of the program in the test's process.

    Each operation on it is made in the program's process. It equals only itself.

    reference: identifies the object for _CallReader.
    """

    def __init__(self, program: _Program, reference: tuple[str, Any]) -> None:
        # Not by `self._program_ = …`, because __setattr__ calls the program.
        vars(self).update(_program_=program, _reference_=reference)

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
    """Pickles a call, with references to what only the program's process has."""

    def persistent_id(self, value: Any) -> tuple[str, Any] | None:
        if isinstance(value, _Remote):
            return value._reference_  # type: ignore[no-any-return]
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        if isinstance(value, type) and value.__module__ == "__main__":
            return "name", value.__name__  # a class of the test; its definition was sent
        if isinstance(value, types.FunctionType) and value.__module__ == "__main__":
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return "function", (marshal.dumps(value.__code__), value.__defaults__, cells)
        if hasattr(value, "__next__"):
            return "iterator", list(value)
        return None


def _update_arguments(function: Any) -> Any:
    """Return `function` such that a call changes its arguments as the program changes its copies.

    split.py inserts it into tests. A function that is not the program's is returned as it is.
    """
    if not isinstance(function, _Remote):
        return function
    return lambda *arguments, **keywords: function(*arguments, _update_arguments=True, **keywords)


def _replace_contents(old: Any, new: Any) -> None:
    old.clear()
    old.extend(new) if isinstance(old, (list, deque)) else old.update(new)


def _exception(name: str) -> Exception:
    """Return the built-in exception of this name, or RuntimeError for any other name.

    StopIteration is not allowed: by raising it, the program could end a loop of the test, so that
    an assert in it is not reached.
    """
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


_MUTABLE = (list, dict, set, deque)
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
