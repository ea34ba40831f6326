"""The program inside the sandbox: run a model's program once per test, and report what came out.

This file is sent to the sandbox as text, so it imports the standard library alone, and of that what
starts quickly. It never holds an expected value, except in a test that cannot be split. Every test
has a process of its own; the one that reports runs nothing of the model's.

Standard input: 16 digits, a marshalled request of that many bytes, then a secret. Only the reporting
process reads the secret, after the last test, so no test can print a report that is taken for ours.
"""

from __future__ import annotations

import itertools
import marshal
import os
import resource
import signal
import sys
import time
from _json import encode_basestring_ascii  # what json.dumps uses, without the import of all of it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn

_SAID = 1 << 20  # bytes of values that a test may hand back
_PRINTED = 1 << 20  # bytes of a program's output that are compared
_DEPTH = 40  # how deep values may be nested
_ITEMS = 10_000  # values that are drawn from an iterator
_EXACT = 1 << 53  # JSON's integers are exact up to here
_TOKEN = 16  # bytes
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


def main() -> None:
    request = marshal.loads(_exactly(int(_exactly(16))))
    reports = []
    for test in request["tests"]:
        reports.append(_report(request, test))
        if reports[-1]["timed_out"]:
            break  # the tests after it would cost as much again
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
    """What one test came to; `passed` means something only for a test that was run as a whole."""
    asks, tells = os.pipe(), os.pipe()
    with os.fdopen(_nameless(), "r+b") as given, os.fdopen(_nameless(), "r+b") as said:
        given.write(test.get("input", "").encode("utf-8", "replace"))
        given.flush()
        os.lseek(given.fileno(), 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            os.close(asks[0])
            os.close(tells[1])
            _run(request, test, given.fileno(), said.fileno(), (tells[0], asks[1]))
        os.close(asks[1])
        os.close(tells[0])
        status, passed = _wait(child, (asks[0], tells[1]), request["seconds"])
        os.close(asks[0])
        os.close(tells[1])
        said.seek(0)
        text = said.read(_PRINTED if "input" in test else _SAID).decode("utf-8", "replace")
    return {"timed_out": status is None, "ended_well": status == 0, "said": text, "passed": passed}


def _nameless() -> int:
    """A file that only its descriptor leads to."""
    name = f".{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return descriptor


def _wait(child: int, verdicts: tuple[int, int], seconds: float) -> tuple[int | None, bool]:
    """The child's wait status, None if it ran out of time; and whether it passed a whole test."""
    os.set_blocking(verdicts[0], False)
    until = time.monotonic() + seconds
    pause, passed = 0.0005, False
    while time.monotonic() < until:
        passed = passed or _verdict(*verdicts, until)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return status, passed
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    _end_group(child)
    os.kill(child, signal.SIGKILL)  # it may have left its group
    os.waitpid(child, 0)
    return None, False


def _verdict(reader: int, writer: int, until: float) -> bool:
    """Answer a test that says it passed with a fresh token; true if the token and nothing else returns.

    The token is made after that test's process was forked, so it wasn't in that process's memory.
    """
    if _heard(reader) != b"?":
        return False
    token, heard = os.urandom(_TOKEN), b""
    try:
        os.write(writer, token)
    except BrokenPipeError:
        return False
    while len(heard) < _TOKEN and time.monotonic() < until:
        time.sleep(0.0002)
        heard += _heard(reader)
    return heard == token


def _heard(reader: int) -> bytes:
    try:
        return os.read(reader, 2 * _TOKEN)
    except BlockingIOError:
        return b""


def _end_group(child: int) -> None:
    try:  # noqa: SIM105
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run(
    request: dict[str, Any], test: dict[str, Any], given: int, said: int, judge: tuple[int, int]
) -> NoReturn:
    """In the test's own process: run the program, then the test."""
    status = 1
    try:
        channel, program = os.dup(said), request["program"]
        _prepare(request["seconds"], given, said if "input" in test else _nowhere())
        request.clear()  # the other tests are no business of this one
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "program.py", "exec"), names)
        if "steps" in test:
            _hand_back(channel, _json(_values(test["steps"], names)))
        elif "whole" in test:
            exec(compile(test["whole"], "test.py", "exec"), names)
            os.write(judge[1], b"?")
            os.write(judge[1], os.read(judge[0], _TOKEN))
        status = 0
    except SystemExit as ended:
        status = 0 if ended.code in (None, 0) else 1
    except BaseException:
        pass  # whatever it raised, it failed
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def _prepare(seconds: float, given: int, printed: int) -> None:
    """Give the test its standard input and output, and a limit on its processor time."""
    nowhere = _nowhere()
    for source, target in ((given, 0), (printed, 1), (nowhere, 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    most = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")


def _nowhere() -> int:
    """Where output goes that nobody reads: a file where a sandbox has no /dev/null to write to."""
    try:
        return os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return _nameless()


def _hand_back(channel: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(channel, data) :]


def _values(steps: Sequence[dict[str, Any]], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a test's steps; the values that it asks for, each {"value": …} or {"raised": …}."""
    values: list[dict[str, Any]] = []
    for step in steps:
        if not step["hand_back"]:
            exec(compile(step["source"], "test.py", "exec"), names)
            continue
        try:
            values.append(
                {"value": _plain(eval(compile(step["source"], "test.py", "eval"), names), 0)}
            )
        except Exception as error:
            values.append({"raised": type(error).__name__})
    return values


def _plain(value: Any, depth: int) -> Any:
    """`value` in JSON's kinds, tagged where JSON has none; an object of another class is only named."""
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
        return {"dict": _all(([key, value[key]] for key in value), depth)}
    if isinstance(value, list):
        return _all(value, depth)
    return _tagged(value, depth)


def _tagged(value: Any, depth: int) -> dict[str, Any]:
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: _all(value, depth)}
    name = type(value).__name__
    if name in _VIEWS:
        return {_VIEWS[name]: _all(value, depth)}
    if name == "deque":
        return {"deque": _all(value, depth)}
    if name == "Fraction":
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if name == "Decimal":
        return {"decimal": str(value)}
    if hasattr(value, "__next__"):
        return {"iterator": _all(_drawn(value), depth)}
    return {"object": name}


def _drawn(iterator: Iterable[Any]) -> list[Any]:
    drawn = list(itertools.islice(iterator, _ITEMS + 1))
    if len(drawn) > _ITEMS:
        raise ValueError("an iterator without an end")
    return drawn


def _all(values: Iterable[Any], depth: int) -> list[Any]:
    return [_plain(value, depth + 1) for value in values]


def _json(value: Any) -> str:
    """`value`, of JSON's own kinds, as text."""
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
