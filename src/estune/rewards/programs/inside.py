"""What the processes in the sandbox share: how they read, write, start and end.

Like conversation.py and driver.py it is sent there as text, one after the other, so these files
import only the standard library, and only what starts quickly.
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


def exactly(size: int, descriptor: int = 0) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def send(descriptor: int, data: bytes) -> None:
    data = b"%016d" % len(data) + data
    while data:
        data = data[os.write(descriptor, data) :]


def received(descriptor: int, most: int | None = None) -> bytes:
    size = int(exactly(16, descriptor))
    if most is not None and size > most:
        raise ValueError("too much")
    return exactly(size, descriptor)


def nameless() -> int:
    """Open a file without a name."""
    name = f".{os.urandom(8).hex()}"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return descriptor


def nowhere() -> int:
    """Open what takes unread output: a file if the sandbox has no /dev/null."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return nameless()


def prepare(seconds: float, given: int, printed: int) -> None:
    """Set a process's standard streams and its limit on processor time."""
    for source, target in ((given, 0), (printed, 1), (nowhere(), 2)):
        os.dup2(source, target)
    os.setpgid(0, 0)
    most = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="replace")
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace")


def ended(child: int, until: float, look: Callable[[], object] = lambda: None) -> int | None:
    """Wait for a child, calling `look` now and then; return its status, None if it took too long.

    It is then ended, together with its group.
    """
    pause, done, status = 0.0005, 0, 0
    while not done and time.monotonic() < until:
        look()
        done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
    try:  # noqa: SIM105
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if not done:
        os.kill(child, signal.SIGKILL)  # it may have left its group
        os.waitpid(child, 0)
    return status if done else None


def run_program(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the program; return its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(request["program"], "program.py", "exec"), names)
    return names
