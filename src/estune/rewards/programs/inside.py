"""Functions for the processes inside the sandbox: read and write messages, prepare, end, run.

This file, remote_calls.py and driver.py are sent to the sandbox as text and run there as one
program with common global names. So they import only the standard library, and only modules that
load quickly.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def read_exactly(size: int, descriptor: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def send(descriptor: int, data: bytes) -> None:
    """Write a message: its length in 16 digits, then `data`."""
    data = b"%016d" % len(data) + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int, max_size: int | None = None) -> bytes:
    """Read a message. Raises ValueError if it is longer than `max_size`."""
    size = int(read_exactly(16, descriptor))
    if max_size is not None and size > max_size:
        raise ValueError("the message is too long")
    return read_exactly(size, descriptor)


def open_unnamed_file() -> int:
    """Create a file and remove its name, so that no other process can open it."""
    name = f".{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return descriptor


def open_null() -> int:
    """Open /dev/null, or an empty file if the sandbox has no /dev/null."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return open_unnamed_file()


def prepare(seconds: float, stdin: int, stdout: int) -> None:
    """Set this process's standard streams, its process group and its limit on processor time."""
    for source, target in ((stdin, 0), (stdout, 1), (open_null(), 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    limit = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")


def wait_and_end(
    child: int, deadline: float, poll: Callable[[], object] = lambda: None
) -> int | None:
    """Wait for a child; return its wait status, or None if it did not end before the deadline.

    `poll` is called repeatedly during the wait. At the end, all processes of the child's group are
    killed, and the child itself.
    """
    pause, done, status = 0.0005, 0, 0
    while not done and time.monotonic() < deadline:
        poll()
        done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
    try:  # noqa: SIM105
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not done:
        os.kill(child, signal.SIGKILL)  # the program may have moved it to another group
        os.waitpid(child, 0)
    return status if done else None


def run_program(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the program, and return its global names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(request["program"], "program.py", "exec"), names)
    return names
