"""Feed a process, and end it with all that it started at the first limit that it meets.

Linux limits memory and processor time by process; what a program and its children take together is
watched here.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from estune.rewards.processes.descendants import end_descendants, end_kept, usage
from estune.rewards.sandbox.interface import Limits, Outcome
from estune.rewards.sandbox.launch import ENVIRONMENT
from estune.rewards.sandbox.pipes import Piped, Pipes
from estune.rewards.sandbox.working_folder import MOST_FILES, size_of

_LOOK = 0.02  # seconds between looks at what the processes take
_PATIENCE = 15.0  # seconds for a process to end that was told to
_OURS = 16  # threads of the sandbox itself, which are counted with the program's
_CPU_LIMIT = (
    128 + 24,
    -24,
)  # the status of a process that SIGXCPU ended, as a shell or the kernel gives it


class Process(Piped, Protocol):
    """A process with pipes, as `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start `command` with pipes, in a session of its own, without this process's environment or
    open files.
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
    given: bytes,
    limits: Limits,
    folder: str = "",
    end: Callable[[int], None] = end_kept,
) -> Outcome:
    """See `process` to its end, with `given` as its standard input.

    folder: where it writes, if nothing else bounds that; end: how to have it end before that, with
    all that it started.
    """
    with Pipes(process, given, limits.output) as pipes:
        try:
            excess = _watch(process, pipes, limits, folder)
        finally:
            code = _ended(process, end)
    status = None if excess or code in _CPU_LIMIT else code
    return Outcome(bytes(pipes.output), status, excess == "time", bytes(pipes.errors))


def _ended(process: Process, end: Callable[[int], None]) -> int:
    """The process's exit status, after it was ended if it has not by itself."""
    if process.poll() is None:
        end(process.pid)
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        end_descendants(process.pid)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()


def _watch(process: Process, pipes: Pipes, limits: Limits, folder: str) -> str:
    """Serve the pipes until the process ends by itself (then ""), or takes too much: the name of
    what it was.
    """
    until = time.monotonic() + limits.seconds
    look = time.monotonic() + _LOOK
    while process.poll() is None:
        now = time.monotonic()
        if now >= until:
            return "time"
        if now >= look:
            if excess := _excess(process.pid, limits, folder):
                return excess
            look = time.monotonic() + _LOOK
        _serve(process, pipes, max(0.0, min(look, until) - now))
    pipes.drain()
    return ""


def _serve(process: Process, pipes: Pipes, seconds: float) -> None:
    if pipes.serve(seconds) < 0:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _excess(pid: int, limits: Limits, folder: str) -> str:
    """What of it all is too much, if anything is."""
    taken = usage(pid, limits.memory)
    if taken.memory > limits.memory:
        return "memory"
    if taken.cpu_seconds > limits.cpu_seconds:
        return "cpu"
    if taken.threads > limits.processes + _OURS:
        return "processes"
    return "disk" if folder and _overflows(folder, taken.written, limits) else ""


def _overflows(folder: str, written: int, limits: Limits) -> bool:
    """Whether `folder` is too full; a file that was removed is there as long as who wrote it keeps
    it open.
    """
    found = size_of(folder)
    return found.entries > MOST_FILES or found.size + written > limits.disk
