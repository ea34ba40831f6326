"""Run a model's program once per test, inside the sandbox, and report the results.

Each test runs in processes of its own; the main process, which reports, runs no code of the program
or of a test. A test of asserts is split if possible: the test runs in one process and the program
in another (remote_calls.py). The processes for the program are forked before the tests are read, so
that their memory never contains an expected value. A test that cannot be split runs as a whole in
the program's process.

Standard input consists of two messages (inside.receive), the marshalled request and the marshalled
tests, and then a secret. The main process reads the secret after the last test has ended, and
prints it in its report. So neither the program nor a test can forge a report.
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

    from estune.rewards.programs.inside import (
        open_null,
        open_unnamed_file,
        prepare,
        receive,
        run_program,
        wait_and_end,
    )
    from estune.rewards.programs.remote_calls import run_split_test, start_program_process

_MAX_OUTPUT = 1 << 20  # bytes of what a program prints
_TOKEN_SIZE = 16  # bytes


def main() -> None:
    request = marshal.loads(receive(0))
    programs = [start_program_process(request) for _ in range(request["split_tests"])]
    reports = []
    for test in marshal.loads(receive(0)):
        if programs:
            report = run_split_test(request, test, programs.pop(0))
        else:
            report = _run_together(request, test)
        reports.append(report)
        if report["timed_out"]:
            break  # each further test would probably take as long
    for unused in programs:
        os.kill(unused.pid, signal.SIGKILL)
    secret = sys.stdin.buffer.read().decode()
    print(json.dumps({"secret": secret, "reports": reports}), flush=True)


# A test that runs together with the program: it gives input and compares output, or cannot be split


def _run_together(request: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Run one test in a child process, and report its result.

    `passed` is the verdict of a test that runs as a whole in the child. A test of input and output
    is judged outside the sandbox, by `output`.
    """
    from_child, child_writes = os.pipe()
    child_reads, to_child = os.pipe()
    with (
        os.fdopen(open_unnamed_file(), "r+b") as stdin_file,
        os.fdopen(open_unnamed_file(), "r+b") as stdout_file,
    ):
        stdin_file.write(test.get("input", "").encode("utf-8", "replace"))
        stdin_file.flush()
        os.lseek(stdin_file.fileno(), 0, os.SEEK_SET)
        child = os.fork()
        if child == 0:
            os.close(from_child)
            os.close(to_child)
            files = (stdin_file.fileno(), stdout_file.fileno())
            _run_in_child(request, test, files, (child_reads, child_writes))
        os.close(child_reads)
        os.close(child_writes)
        os.set_blocking(from_child, False)
        deadline = time.monotonic() + request["seconds"]
        verdicts: list[bool] = []
        status = wait_and_end(
            child, deadline, lambda: verdicts.append(_has_passed(from_child, to_child, deadline))
        )
        os.close(from_child)
        os.close(to_child)
        stdout_file.seek(0)
        output = stdout_file.read(_MAX_OUTPUT).decode("utf-8", "replace")
    return {
        "timed_out": status is None,
        "status": status,
        "output": output,
        "passed": any(verdicts),
    }


def _run_in_child(
    request: dict[str, Any], test: dict[str, Any], files: tuple[int, int], pipes: tuple[int, int]
) -> NoReturn:
    """Run the program, then the test if it must run as a whole.

    files: descriptors for standard input and standard output.
    pipes: from and to the parent.
    """
    status = 1
    try:
        (stdin, stdout), (from_parent, to_parent) = files, pipes
        prepare(request["seconds"], stdin, stdout if "input" in test else open_null())
        names = run_program(request)
        if "whole" in test:
            exec(compile(test["whole"], "test.py", "exec"), names)
            os.write(to_parent, b"?")
            os.write(to_parent, os.read(from_parent, _TOKEN_SIZE))
        status = 0
    except SystemExit as exit_request:
        status = 0 if exit_request.code in (None, 0) else 1
    except BaseException:
        pass  # any other exception fails the test
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)


def _has_passed(from_child: int, to_child: int, deadline: float) -> bool:
    """Return whether the child reports that the test passed, and confirms it with a token.

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


main()
