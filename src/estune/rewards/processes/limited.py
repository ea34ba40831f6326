"""Call a function that may never end in a process that is ended when it takes too long.

sympy has no time limit, and neither a thread nor a signal can stop a long multiplication. The limit
is on processor time, so that a busy machine gives the same grades.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import IO, Any

from estune.errors import ConfigError
from estune.rewards.marks import Grades
from estune.rewards.processes.containment import allow_cpu, end_with_parent, limit_memory

MOST = 5.0  # seconds of processor time that built-in graders give a completion
_START = 30.0  # seconds in which the process starts, even on a busy machine
_PATIENCE = 6  # wall time may be this many times the limit, on a busy machine
_MEMORY = 4 << 30  # bytes
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from estune.rewards.processes.limited import serve; serve({made_by!r}, {seconds!r})"
)
Function = Callable[..., Any]


class OverLimitError(Exception):
    """A call took too long, or too much memory."""


class Limited:
    """Calls the function that the factory `made_by` ("module:name") returns.

    Each call gets `seconds` of processor time. Arguments and results are JSON. The process starts
    with the first call, and again after a call that was ended. Calls from several threads take
    turns.
    """

    def __init__(self, made_by: str, seconds: float) -> None:
        self._made_by, self._seconds = made_by, seconds
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._remembered = lru_cache(maxsize=4096)(self._result)  # members repeat completions

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result.

        Raises:
            OverLimitError: it took too long, or too much memory.
            ConfigError: the function cannot be made, for example because a library is missing.
        """
        outcome, value = self._remembered(json.dumps(arguments))
        if outcome != "value":
            raise OverLimitError(f"took more than {self._seconds:g} s")
        return value

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._turn:
            self._end()

    def _result(self, request: str) -> tuple[str, Any]:
        with self._turn:
            for _ in range(2):  # a second time if something else killed the process
                process = self._running()
                if line := self._exchange(process, request):
                    outcome, value = json.loads(line)
                    return outcome, value
                self._end()
                if process.returncode != -signal.SIGKILL:
                    break
            return "over", None

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        program = _PROGRAM.format(path=sys.path, made_by=self._made_by, seconds=self._seconds)
        command = [sys.executable, "-c", program]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8")
        atexit.register(self._end)
        ended = '["refused", "its process ended"]'
        outcome, why = json.loads(_line(self._process.stdout) or ended)
        if outcome == "refused":
            self._end()
            raise ConfigError(why)
        return self._process

    def _exchange(self, process: "subprocess.Popen[str]", request: str) -> str:
        """Return the response, or "" if the process was ended by its limit or by the clock."""
        clock = threading.Timer(_PATIENCE * self._seconds, process.terminate)
        clock.start()
        try:
            assert process.stdin is not None
            process.stdin.write(request + "\n")
            process.stdin.flush()
            return _line(process.stdout)
        except BrokenPipeError:
            return ""
        finally:
            clock.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self._end)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # it flushes bytes to a process that has ended
                assert stream is not None
                stream.close()


def graded(pairs: Sequence[tuple[Any, ...]], grade: Callable[..., float]) -> Grades:
    """Return `grade(*pair)` for each of `pairs`: 0, the lowest, where it met its limit."""
    grades = Grades([])
    for pair in pairs:
        try:
            grades.append(float(grade(*pair)))
        except OverLimitError:
            grades.append(0.0)
            grades.overran += 1
    return grades


def most_seconds(completions: Sequence[Any], **columns: Any) -> float:
    """Return the seconds within which `graded` finishes, whatever the completions are."""
    return len(completions) * (MOST * _PATIENCE + _START) + _START


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    return line if line.endswith("\n") else ""


def serve(made_by: str, seconds: float) -> None:
    """Serve calls in the process: a request per line of input, a response per line of output."""
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what a library prints out of the responses
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    end_with_parent()
    limit_memory(_MEMORY)
    try:
        module, _, name = made_by.partition(":")
        function: Function = getattr(importlib.import_module(module), name)()
    except Exception as error:
        return _respond(responses, "refused", str(error))
    _respond(responses, "ready", None)
    for request in sys.stdin:
        allow_cpu(seconds)
        try:
            _respond(responses, "value", function(*json.loads(request)))
        except MemoryError:
            _respond(responses, "over", None)


def _respond(responses: IO[str], outcome: str, value: Any) -> None:
    responses.write(json.dumps([outcome, value]) + "\n")
    responses.flush()
