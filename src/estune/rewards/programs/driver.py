"""Run a model's program once per test, inside the sandbox, and report the results.

Every test has processes of its own; the one that reports runs no code of others. A test of asserts
is split if possible: the test runs in one process and the program in another (conversation.py). The
program's processes are forked before the tests are read, so they never hold an expected value. A
test that cannot be split runs as a whole in the program's process.

Standard input: twice 16 digits and so many marshalled bytes, the request and the tests; then a
secret. Only the reporting process reads the secret, after the last test, so no test can forge a
report.
"""

from __future__ import annotations

import json
import marshal
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from estune.rewards.programs.conversation import actor, judged
    from estune.rewards.programs.inside import (
        ended,
        nameless,
        nowhere,
        prepare,
        received,
        run_program,
    )

_MOST = 1 << 20  # bytes of a program's output
_TOKEN = 16  # bytes


def main() -> None:
    request = marshal.loads(received(0))
    actors = [actor(request) for _ in range(request["actors"])]  # before the tests are read
    reports = []
    for test in marshal.loads(received(0)):
        reports.append(judged(request, test, *actors.pop(0)) if actors else _run(request, test))
        if reports[-1]["timed_out"]:
            break  # the tests after it would take as long again
    for pid, *_ in actors:
        os.kill(pid, signal.SIGKILL)
    secret = sys.stdin.buffer.read().decode()
    print(json.dumps({"secret": secret, "reports": reports}), flush=True)


# A test that runs with the program: one of input and output, or one that cannot be split


def _run(request: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Run one test and report on it; `passed` only counts for a test that ran as a whole."""
    asks, tells = os.pipe(), os.pipe()
    with os.fdopen(nameless(), "r+b") as given, os.fdopen(nameless(), "r+b") as said:
        given.write(test.get("input", "").encode("utf-8", "replace"))
        given.flush()
        os.lseek(given.fileno(), 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            os.close(asks[0])
            os.close(tells[1])
            _together(request, test, given.fileno(), said.fileno(), (tells[0], asks[1]))
        os.close(asks[1])
        os.close(tells[0])
        os.set_blocking(asks[0], False)
        until, passed = time.monotonic() + request["seconds"], []
        status = ended(child, until, lambda: passed.append(_verdict(asks[0], tells[1], until)))
        os.close(asks[0])
        os.close(tells[1])
        said.seek(0)
        text = said.read(_MOST).decode("utf-8", "replace")
    return {"timed_out": status is None, "status": status, "said": text, "passed": any(passed)}


def _together(
    request: dict[str, Any], test: dict[str, Any], given: int, said: int, judge: tuple[int, int]
) -> NoReturn:
    """Run the program, then the test if there is one. This is a process of its own."""
    status = 1
    try:
        prepare(request["seconds"], given, said if "input" in test else nowhere())
        names = run_program(request)
        if "whole" in test:
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


main()
