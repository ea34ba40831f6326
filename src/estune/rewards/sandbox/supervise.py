"""Wait for a program, and end it with all its descendants as soon as it exceeds a limit.

Linux limits memory and processor time per process only. A program could evade these limits by
starting many processes, so this module regularly measures their sum.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from estune.rewards.processes.descendants import end_descendants, end_with_descendants, usage
from estune.rewards.sandbox.interface import Limits, Outcome
from estune.rewards.sandbox.launch import ENVIRONMENT
from estune.rewards.sandbox.pipes import Piped, Pipes
from estune.rewards.sandbox.working_folder import MAX_FILES, size_of

_CHECK_INTERVAL = 0.02  # seconds between measurements of what the processes use
_END_SECONDS = 15.0  # how long a process may take to end when asked to
_SANDBOX_THREADS = 16  # most threads of the sandbox itself, which are counted with the program's
_CPU_LIMIT_STATUSES = (128 + signal.SIGXCPU, -signal.SIGXCPU)  # from a shell, from the kernel


class Process(Piped, Protocol):
    """A process with pipes, such as a `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start `command` with pipes, in a session of its own.

    It inherits neither this process's environment, which may contain secrets, nor its open files.
    """
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,
    )


def supervise(
    process: Process,
    stdin: bytes,
    limits: Limits,
    folder: str = "",
    end: Callable[[int], None] = end_with_descendants,
) -> Outcome:
    """Write `stdin` to `process`, and wait until it ends or exceeds `limits`.

    folder: the folder that the program writes to, if its size must be checked here.
    end: ends the process with a given id, and all its descendants.
    """
    with Pipes(process, stdin, limits.output) as pipes:
        try:
            exceeded = _watch(process, pipes, limits, folder)
        finally:
            code = _exit_status(process, end)
    status = None if exceeded or code in _CPU_LIMIT_STATUSES else code
    return Outcome(bytes(pipes.output), status, exceeded == "time", bytes(pipes.errors))


def _exit_status(process: Process, end: Callable[[int], None]) -> int:
    """Return the exit status; end the process first if it is still running."""
    if process.poll() is None:
        end(process.pid)
    try:
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        end_descendants(process.pid)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()


def _watch(process: Process, pipes: Pipes, limits: Limits, folder: str) -> str:
    """Wait until the process ends, and return ""; or return the name of the limit it exceeds."""
    deadline = time.monotonic() + limits.seconds
    next_check = time.monotonic() + _CHECK_INTERVAL
    while process.poll() is None:
        now = time.monotonic()
        if now >= deadline:
            return "time"
        if now >= next_check:
            if exceeded := _exceeded_limit(process.pid, limits, folder):
                return exceeded
            next_check = time.monotonic() + _CHECK_INTERVAL
        seconds = max(0.0, min(next_check, deadline) - now)
        if not pipes.transfer(seconds):  # the program has closed its pipes but still runs
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    pipes.drain()
    return ""


def _exceeded_limit(pid: int, limits: Limits, folder: str) -> str:
    """Return the name of a limit that is exceeded, or ""."""
    used = usage(pid, limits.memory)
    if used.memory > limits.memory:
        return "memory"
    if used.cpu_seconds > limits.cpu_seconds:
        return "cpu"
    if used.threads > limits.processes + _SANDBOX_THREADS:
        return "processes"
    return "disk" if folder and _is_too_full(folder, used.written, limits) else ""


def _is_too_full(folder: str, written: int, limits: Limits) -> bool:
    """Return whether the files of a program use too much of the disk.

    A removed file occupies the disk as long as a process has it open, but is not found in `folder`.
    So the bytes that the processes have `written` are added; this counts existing files twice.
    """
    found = size_of(folder)
    return found.entries > MAX_FILES or found.size + written > limits.disk
