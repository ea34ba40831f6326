"""Run a model's program once per test, inside the sandbox, and report the results.

This file is sent to the sandbox as text, so it imports only the standard library, and only what
starts quickly. It never holds an expected value, except in a test that cannot be split. Every test
has a process of its own; the one that reports runs no code of the model's.

Standard input: 16 digits, a marshalled request of that many bytes, then a secret. Only the
reporting process reads the secret, after the last test, so no test can forge a report.
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

_MOST = 1 << 20  # bytes of a test's values or of its output
_DEPTH = 40  # of nested values
_ITEMS = 10_000  # of an iterator
_EXACT = 1 << 53  # JSON's integers are exact up to here
_TOKEN = 16  # bytes
_VIEWS = {"dict_keys": "keys", "dict_values": "values", "dict_items": "items"}


def main() -> None:
    request = marshal.loads(_exactly(int(_exactly(16))))
    reports = []
    for test in request["tests"]:
        reports.append(_report(request, test))
        if reports[-1]["timed_out"]:
            break  # the tests after it would take as long again
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
    """Run one test and report on it; `passed` only counts for a test that ran as a whole."""
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
        text = said.read(_MOST).decode("utf-8", "replace")
    return {"timed_out": status is None, "ended_well": status == 0, "said": text, "passed": passed}


def _nameless() -> int:
    """Open a file without a name."""
    name = f".{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return descriptor


def _wait(child: int, verdicts: tuple[int, int], seconds: float) -> tuple[int | None, bool]:
    """Return the child's wait status, None if it took too long, and whether it passed."""
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
    """Send a fresh token to a test that claims to have passed; return whether just that comes back.

    The token is made after the test's process was forked, so it isn't in that process's memory.
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
    """Run the program, then the test. This is the test's own process."""
    status = 1
    try:
        channel, program = os.dup(said), request["program"]
        _prepare(request["seconds"], given, said if "input" in test else _nowhere())
        request.clear()  # this test must not see the others
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "program.py", "exec"), names)
        if "requests" in test:
            _hand_back(channel, _json(_values(test["requests"], names)))
        elif "whole" in test:
            exec(compile(test["whole"], "test.py", "exec"), names)
            os.write(judge[1], b"?")
            os.write(judge[1], os.read(judge[0], _TOKEN))
        status = 0
    except SystemExit as ended:
        status = 0 if ended.code in (None, 0) else 1
    except BaseException:
        pass  # the test failed, whatever was raised
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def _prepare(seconds: float, given: int, printed: int) -> None:
    """Set the test's standard streams and its limit on processor time."""
    for source, target in ((given, 0), (printed, 1), (_nowhere(), 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    most = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")


def _nowhere() -> int:
    """Open what takes unread output: a file if the sandbox has no /dev/null."""
    try:
        return os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return _nameless()


def _hand_back(channel: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(channel, data) :]


def _values(requests: Sequence[dict[str, Any]], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a test's requests; return the values, each as {"value": …} or {"raised": …}."""
    values: list[dict[str, Any]] = []
    for request in requests:
        source = request["source"]
        if not request["hand_back"]:
            exec(compile(source, "test.py", "exec"), names)
            continue
        try:
            value = eval(compile(source, "test.py", "eval"), names)
            values.append({"value": _plain(value, 0)})
        except Exception as error:
            values.append({"raised": type(error).__name__})
    return values


def _plain(value: Any, depth: int) -> Any:
    """Return `value` as JSON's kinds, with tags for others; objects are only named."""
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
    """Return `value`, which is of JSON's own kinds, as text."""
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
