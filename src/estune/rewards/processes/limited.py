"""Call a function that may never return in a process of its own, which is ended at a time limit.

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

MAX_SECONDS = 5.0  # processor time that built-in graders allow per completion
_START_SECONDS = 30.0  # enough to start the process even on a busy machine
_WALL_FACTOR = 6  # wall time may be this many times the limit, because the machine may be busy
_MEMORY = 4 << 30  # bytes
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from estune.rewards.processes.limited import serve; serve({factory!r}, {seconds!r})"
)
Function = Callable[..., Any]


class OverLimitError(Exception):
    """A call exceeded its limit on time or memory."""


class Limited:
    """Calls a function in a process of its own, for a limited time.

    The process starts with the first call, and starts again after a call that exceeded its limit.
    Calls from several threads are made one after another. Arguments and results are sent as JSON.

    Args:
        factory: "module:name" of a function that returns the function to call.
        seconds: processor time per call.
    """

    def __init__(self, factory: str, seconds: float) -> None:
        self._factory, self._seconds = factory, seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._cached_result = lru_cache(maxsize=4096)(self._result)  # members repeat completions

    def __call__(self, *arguments: Any) -> Any:
        """Return the function's result.

        Raises:
            OverLimitError: the call took too long, or too much memory.
            ConfigError: the factory failed, for example because a library is missing.
        """
        outcome, value = self._cached_result(json.dumps(arguments))
        if outcome != "value":
            raise OverLimitError(f"took more than {self._seconds:g} s")
        return value

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            self._end()

    def _result(self, request: str) -> tuple[str, Any]:
        with self._lock:
            for _ in range(2):  # retry once if something outside killed the process
                process = self._running_process()
                if line := self._exchange(process, request):
                    outcome, value = json.loads(line)
                    return outcome, value
                self._end()
                if process.returncode != -signal.SIGKILL:
                    break
            return "over", None

    def _running_process(self) -> "subprocess.Popen[str]":
        """Return the process; start it first if it is not running."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        program = _PROGRAM.format(path=sys.path, factory=self._factory, seconds=self._seconds)
        command = [sys.executable, "-c", program]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8")
        atexit.register(self._end)
        if_it_ended = '["refused", "its process ended"]'
        outcome, reason = json.loads(_line(self._process.stdout) or if_it_ended)
        if outcome == "refused":
            self._end()
            raise ConfigError(reason)
        return self._process

    def _exchange(self, process: "subprocess.Popen[str]", request: str) -> str:
        """Return the response, or "" if the process was ended at its CPU or wall time limit."""
        timer = threading.Timer(_WALL_FACTOR * self._seconds, process.terminate)
        timer.start()
        try:
            assert process.stdin is not None
            process.stdin.write(request + "\n")
            process.stdin.flush()
            return _line(process.stdout)
        except BrokenPipeError:
            return ""
        finally:
            timer.cancel()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self._end)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # close() flushes to a process that has ended
                assert stream is not None
                stream.close()


def graded(pairs: Sequence[tuple[Any, ...]], grade: Callable[..., float]) -> Grades:
    """Return `grade(*pair)` for each of `pairs`, and 0 for calls that exceeded their limit."""
    grades = Grades([])
    for pair in pairs:
        try:
            grades.append(float(grade(*pair)))
        except OverLimitError:
            grades.append(0.0)
            grades.overran += 1
    return grades


def max_seconds(completions: Sequence[Any], **columns: Any) -> float:
    """Return the longest time, in seconds, that `graded` can take for `completions`."""
    return len(completions) * (MAX_SECONDS * _WALL_FACTOR + _START_SECONDS) + _START_SECONDS


def _line(stream: IO[str] | None) -> str:
    """Return the next whole line, or "" if the stream ended first."""
    assert stream is not None
    line = stream.readline()
    return line if line.endswith("\n") else ""


def serve(factory: str, seconds: float) -> None:
    """Run in the process: read one request per line of stdin, write one response per line."""
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr, not among the responses
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    end_with_parent()
    limit_memory(_MEMORY)
    try:
        module, _, name = factory.partition(":")
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
