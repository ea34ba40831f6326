"""Run a model's program once per test, inside the sandbox, and report the results.

This file is sent to the sandbox as text, so it imports only the standard library, and only modules
that load quickly. It never has an expected value, except in a test that cannot be split. Each test
runs in a child process, so that the process that reports runs no code of the model.

Standard input consists of 16 digits, a marshalled request of that many bytes, and a secret. The
reporting process reads the secret after the last test has ended, and prints it in its report. So
the model's code cannot forge a report: it never sees the secret.
"""

from __future__ import annotations

import itertools
import marshal
import os
import resource
import signal
import sys
import time
from _json import encode_basestring_ascii  # part of json, which takes long to import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

_MAX_OUTPUT = 1 << 20  # bytes per test, of its values or of what it prints
_MAX_DEPTH = 40  # of nested values
_MAX_ITEMS = 10_000  # that are taken from an iterator
_MAX_EXACT = 1 << 53  # JSON readers represent integers exactly up to here
_TOKEN_SIZE = 16  # bytes
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


def main() -> None:
    request = marshal.loads(_exactly(int(_exactly(16))))
    reports = []
    for test in request["tests"]:
        reports.append(_report(request, test))
        if reports[-1]["timed_out"]:
            break  # each further test would probably take as long
    secret = sys.stdin.buffer.read().decode()
    print(_json({"secret": secret, "reports": reports}), flush=True)


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _report(request: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Run one test in a child process, and report its result.

    `passed` is the verdict of a test that runs as a whole in the child. Other tests are judged
    outside the sandbox, by `output`.
    """
    from_child, child_writes = os.pipe()
    child_reads, to_child = os.pipe()
    with (
        os.fdopen(_open_unnamed_file(), "r+b") as stdin_file,
        os.fdopen(_open_unnamed_file(), "r+b") as output_file,
    ):
        stdin_file.write(test.get("input", "").encode("utf-8", "replace"))
        stdin_file.flush()
        os.lseek(stdin_file.fileno(), 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            os.close(from_child)
            os.close(to_child)
            files = (stdin_file.fileno(), output_file.fileno())
            _run_test(request, test, files, (child_reads, child_writes))
        os.close(child_reads)
        os.close(child_writes)
        status, passed = _wait(child, (from_child, to_child), request["seconds"])
        os.close(from_child)
        os.close(to_child)
        output_file.seek(0)
        output = output_file.read(_MAX_OUTPUT).decode("utf-8", "replace")
    return {
        "timed_out": status is None,
        "ended_well": status == 0,
        "output": output,
        "passed": passed,
    }


def _open_unnamed_file() -> int:
    """Create a file and remove its name, so that no other test can open it."""
    name = f".{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return descriptor


def _wait(child: int, pipes: tuple[int, int], seconds: float) -> tuple[int | None, bool]:
    """Wait for the child; return its wait status, or None if it took too long, and its verdict.

    pipes: from and to the child.
    """
    from_child, to_child = pipes
    os.set_blocking(from_child, False)
    deadline = time.monotonic() + seconds
    pause, passed = 0.0005, False
    while time.monotonic() < deadline:
        passed = passed or _has_passed(from_child, to_child, deadline)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return status, passed
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    _end_group(child)
    os.kill(child, signal.SIGKILL)  # the model's code may have moved it to another group
    os.waitpid(child, 0)
    return None, False


def _has_passed(from_child: int, to_child: int, deadline: float) -> bool:
    """Return whether the child reports that the test passed, which it must confirm with a token.

    The child asks for a random token with "?" and sends it back. A program cannot forge this by
    writing to all open descriptors, because the token does not exist before the child asks for it.
    """
    if _read_available(from_child) != b"?":
        return False
    token, reply = os.urandom(_TOKEN_SIZE), b""
    try:
        os.write(to_child, token)
    except BrokenPipeError:
        return False
    while len(reply) < _TOKEN_SIZE and time.monotonic() < deadline:
        time.sleep(0.0002)
        reply += _read_available(from_child)
    return reply == token


def _read_available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2 * _TOKEN_SIZE)
    except BlockingIOError:
        return b""


def _end_group(child: int) -> None:
    try:  # noqa: SIM105
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run_test(
    request: dict[str, Any],
    test: dict[str, Any],
    files: tuple[int, int],
    pipes: tuple[int, int],
) -> NoReturn:
    """Run the program, then the test, in the child process.

    files: descriptors of the files for standard input and for the output.
    pipes: from and to the reporting process.
    """
    from_parent, to_parent = pipes
    status = 1
    try:
        stdin, output = files
        values_file, program = os.dup(output), request["program"]
        _prepare(request["seconds"], stdin, output if "input" in test else _open_sink())
        request.clear()  # so that the program cannot find the other tests in memory
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "program.py", "exec"), names)
        if "requests" in test:
            _write_all(values_file, _json(_values(test["requests"], names)))
        elif "whole" in test:
            exec(compile(test["whole"], "test.py", "exec"), names)
            os.write(to_parent, b"?")
            os.write(to_parent, os.read(from_parent, _TOKEN_SIZE))
        status = 0
    except SystemExit as ended:
        status = 0 if ended.code in (None, 0) else 1
    except BaseException:
        pass  # any other exception fails the test
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def _prepare(seconds: float, stdin: int, stdout: int) -> None:
    """Set the standard streams, a process group and a limit on processor time."""
    for source, target in ((stdin, 0), (stdout, 1), (_open_sink(), 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    limit = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")


def _open_sink() -> int:
    """Open a place for output that nobody reads: /dev/null, or a file where that is missing."""
    try:
        return os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return _open_unnamed_file()


def _write_all(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(descriptor, data) :]


def _values(requests: Sequence[dict[str, Any]], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a test's requests in order, and return the requested values.

    Each is {"value": …}, or {"raised": …} with the name of the exception.
    """
    values: list[dict[str, Any]] = []
    for request in requests:
        source = request["source"]
        if not request["returns_value"]:
            exec(compile(source, "test.py", "exec"), names)
            continue
        try:
            value = eval(compile(source, "test.py", "eval"), names)
            values.append({"value": _plain(value, 0)})
        except Exception as error:
            values.append({"raised": type(error).__name__})
    return values


def _plain(value: Any, depth: int) -> Any:
    """Return `value` as types that JSON has.

    Other types are dictionaries with the type's name as the only key, such as {"tuple": […]}. Of an
    object of any other class, only the name of the class is kept.
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
        return {"dict": _plain_items(([key, value[key]] for key in value), depth)}
    if isinstance(value, list):
        return _plain_items(value, depth)
    return _tagged(value, depth)


def _tagged(value: Any, depth: int) -> dict[str, Any]:
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: _plain_items(value, depth)}
    name = type(value).__name__
    if name in _VIEWS:
        return {_VIEWS[name]: _plain_items(value, depth)}
    if name == "deque":
        return {"deque": _plain_items(value, depth)}
    if name == "Fraction":
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if name == "Decimal":
        return {"decimal": str(value)}
    if hasattr(value, "__next__"):
        return {"iterator": _plain_items(_first_items(value), depth)}
    return {"object": name}


def _first_items(iterator: Iterable[Any]) -> list[Any]:
    items = list(itertools.islice(iterator, _MAX_ITEMS + 1))
    if len(items) > _MAX_ITEMS:
        raise ValueError("an iterator without an end")
    return items


def _plain_items(values: Iterable[Any], depth: int) -> list[Any]:
    return [_plain(value, depth + 1) for value in values]


def _json(value: Any) -> str:
    """Return the JSON text of `value`, which consists of JSON's types only."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(key)}:{_json(each)}" for key, each in value.items()) + "}"
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


main()
