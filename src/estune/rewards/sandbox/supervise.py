"""Run a program's process, and end it with all its descendants at the first limit that it exceeds.

Linux limits memory and processor time per process; their sum over a program's processes is watched
here.
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
from estune.rewards.sandbox.working_folder import MOST_FILES, size_of

_LOOK = 0.02  # seconds between looks at what the processes use
_PATIENCE = 15.0  # seconds for a process to end when asked to
_OURS = 16  # threads of the sandbox itself, which count with the program's
_CPU_LIMIT = (128 + signal.SIGXCPU, -signal.SIGXCPU)  # exit status from a shell, from the kernel


class Process(Piped, Protocol):
    """A process with pipes, as `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start `command` with pipes, in its own session, without our environment or open files."""
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
    end: Callable[[int], None] = end_with_descendants,
) -> Outcome:
    """Give `process` its standard input, `given`, and wait until it ends or exceeds `limits`.

    folder: where it writes, if nothing else limits that.
    end: how to end it early, with all its descendants.
    """
    with Pipes(process, given, limits.output) as pipes:
        try:
            excess = _watch(process, pipes, limits, folder)
        finally:
            code = _ended(process, end)
    status = None if excess or code in _CPU_LIMIT else code
    return Outcome(bytes(pipes.output), status, excess == "time", bytes(pipes.errors))


def _ended(process: Process, end: Callable[[int], None]) -> int:
    """Return the exit status, after ending the process if it still runs."""
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
    """Serve the pipes until the process ends, or return the name of the limit that it exceeds."""
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
        seconds = max(0.0, min(look, until) - now)
        if not pipes.serve(seconds):
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    pipes.drain()
    return ""


def _excess(pid: int, limits: Limits, folder: str) -> str:
    """Return the name of an exceeded limit, or ""."""
    used = usage(pid, limits.memory)
    if used.memory > limits.memory:
        return "memory"
    if used.cpu_seconds > limits.cpu_seconds:
        return "cpu"
    if used.threads > limits.processes + _OURS:
        return "processes"
    return "disk" if folder and _overflows(folder, used.written, limits) else ""


def _overflows(folder: str, written: int, limits: Limits) -> bool:
    """Return whether `folder` is too full.

    `written` counts bytes in removed files, which take room as long as a process keeps them open.
    """
    found = size_of(folder)
    return found.entries > MOST_FILES or found.size + written > limits.disk
