"""Start programs through sandlock_host.py and treat them like a `subprocess.Popen`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import weakref
from multiprocessing.connection import wait
from typing import IO, Any

from estune.rewards.processes import reaper
from estune.rewards.sandbox import launch, sandlock_host
from estune.rewards.sandbox.interface import Unusable

_START_SECONDS = 30.0  # the longest time until a program's reaper reports its process id


class Host:
    """A process that has loaded sandlock (sandlock_host.py).

    It starts with the first program and ends when this object is garbage collected.
    """

    def __init__(self, packages: str) -> None:
        script = [sandlock_host.__file__, reaper.__file__, launch.LAUNCHER, packages]
        self._command = [launch.interpreter(), "-I", "-S", *script]
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def start(self, policy: dict[str, Any], command: list[str]) -> "Hosted":
        """Start a program under sandlock's settings `policy`."""
        stdin, stdout, stderr, report = (os.pipe() for _ in range(4))
        theirs = [stdin[0], stdout[1], stderr[1], report[1]]
        try:
            self._send(json.dumps({"policy": policy, "command": command}).encode(), theirs)
        finally:
            for each in theirs:
                os.close(each)
        return Hosted(stdin[1], stdout[0], stderr[0], report[0])

    def _send(self, message: bytes, descriptors: list[int]) -> None:
        with self._lock:
            with contextlib.suppress(OSError):  # the host has ended: start another one below
                if self._socket is not None:
                    socket.send_fds(self._socket, [message], descriptors)
                    return
            self._socket = self._started()
            socket.send_fds(self._socket, [message], descriptors)

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=launch.ENVIRONMENT,
                start_new_session=True,
            )
        weakref.finalize(self, _end, ours, process)
        return ours


def _end(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    connection.close()
    process.wait()


class Hosted:
    """A running program. Its reaper reports the reaper's process id, then the exit status."""

    def __init__(self, stdin: int, stdout: int, stderr: int, report: int) -> None:
        self.stdin: IO[bytes] | None = os.fdopen(stdin, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb", buffering=0)
        self.stderr: IO[bytes] | None = os.fdopen(stderr, "rb", buffering=0)
        self._report = os.fdopen(report, "rb", buffering=0)
        self._code: int | None = None
        started = self._line(_START_SECONDS)
        if not started:
            raise Unusable("sandlock: the package could not be loaded")
        self.pid = int(started)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            self._code = int(self._line(timeout) or -signal.SIGKILL)
            self._report.close()
        return self._code

    def _line(self, timeout: float | None) -> bytes:
        """Return the next line of the report, or b"" if the reaper ended without writing one."""
        if not wait([self._report.fileno()], timeout):  # select() fails for descriptors above 1023
            raise subprocess.TimeoutExpired("reaper", timeout or 0)
        return self._report.readline()
