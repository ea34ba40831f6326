"""Start a command, feed it, and end it with all that it started at the first limit that it meets.

Linux limits memory and processor time by process; what a program and its children take together is watched here.
"""

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from estune.rewards.descendants import end_tree, usage
from estune.rewards.sandbox.folder import MOST_FILES, size_of
from estune.rewards.sandbox.job import ENVIRONMENT
from estune.rewards.sandbox.kinds import Limits, Outcome
from estune.rewards.sandbox.pipes import Pipes

_LOOK = 0.02  # seconds between looks at what the processes take
_OURS = 16  # threads of the sandbox itself, which are counted with the program's
_CPU_LIMIT = (128 + 24, -24)  # the status of a process that SIGXCPU ended, as a shell or the kernel gives it


def supervise(command: Sequence[str], given: bytes, limits: Limits, folder: str = "") -> Outcome:
    """Run `command` with `given` as its standard input. folder: where it writes, if nothing else bounds that."""
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=ENVIRONMENT,
        start_new_session=True,
    )
    with process, Pipes(process, given, limits.output) as pipes:
        try:
            excess = _watch(process, pipes, limits, folder)
        finally:
            end_tree(process.pid, ended=process.poll() is not None)
            process.wait()
    status = None if excess or process.returncode in _CPU_LIMIT else process.returncode
    return Outcome(bytes(pipes.output), status, excess == "time", bytes(pipes.errors))


def _watch(process: "subprocess.Popen[bytes]", pipes: Pipes, limits: Limits, folder: str) -> str:
    """Serve the pipes until the process ends by itself (then ""), or takes too much: the name of what it was."""
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


def _serve(process: "subprocess.Popen[bytes]", pipes: Pipes, seconds: float) -> None:
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
    """Whether `folder` is too full; a file that was removed is there as long as who wrote it keeps it open."""
    found = size_of(folder)
    return found.entries > MOST_FILES or found.size + written > limits.disk
