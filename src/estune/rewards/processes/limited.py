"""A function that may never end, called in a process that is ended when it takes too long.

sympy has no time limit, and neither a thread nor a signal would stop it in the middle of a long
multiplication. The limit is on processor time, so that a busy machine gives the same grades.
"""

import atexit
import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import IO, Any

from estune.errors import ConfigError
from estune.rewards.marks import Grades

MOST = 5.0  # seconds of processor time that built-in graders give an answer
_START = 30.0  # seconds that the process may take to start on a machine that is busy
_PATIENCE = 6  # times the limit that may pass by the clock, on a busy machine
_MEMORY = 4 << 30  # bytes
_PR_SET_PDEATHSIG = 1
_PROGRAM = "import sys; sys.path[:] = {path!r}; from estune.rewards.processes.limited import serve; serve({made_by!r}, {seconds!r})"
Function = Callable[..., Any]


class OverLimitError(Exception):
    """A call took longer, or more memory, than it may."""


class Limited:
    """Calls the function that `made_by` ("module:name") returns, for `seconds` of processor time.

    Arguments and results are JSON. The process starts with the first call, and again after a call that
    had to be ended. Calls from several threads take turns.
    """

    def __init__(self, made_by: str, seconds: float) -> None:
        self._made_by, self._seconds = made_by, seconds
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._remembered = lru_cache(maxsize=4096)(self._asked)  # a population repeats itself

    def __call__(self, *arguments: Any) -> Any:
        """The function's result.

        Raises:
            OverLimitError: it took too long, or too much memory.
            ConfigError: the function cannot be made, as where a library is not installed.
        """
        outcome, value = self._remembered(json.dumps(arguments))
        if outcome != "value":
            raise OverLimitError(f"took more than {self._seconds:g} s")
        return value

    def close(self) -> None:
        """End the process; another call starts it anew."""
        with self._turn:
            self._end()

    def _asked(self, request: str) -> tuple[str, Any]:
        with self._turn:
            for _ in range(2):  # again if something else killed it
                process = self._started()
                answer = self._exchanged(process, request, _PATIENCE * self._seconds)
                if answer:
                    outcome, value = json.loads(answer)
                    return outcome, value
                self._end()
                if process.returncode != -signal.SIGKILL:
                    break
            return "over", None

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        program = _PROGRAM.format(path=sys.path, made_by=self._made_by, seconds=self._seconds)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        atexit.register(self._end)
        outcome, why = json.loads(_line(self._process.stdout) or '["refused", "its process ended"]')
        if outcome == "refused":
            self._end()
            raise ConfigError(why)
        return self._process

    def _exchanged(self, process: "subprocess.Popen[str]", request: str, seconds: float) -> str:
        """The answer; nothing if the process was ended, by its limit or after `seconds` by the clock."""
        clock = threading.Timer(seconds, process.terminate)
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
            with contextlib.suppress(OSError):  # what was not yet written has nowhere to go
                assert stream is not None
                stream.close()


def graded(pairs: Sequence[tuple[Any, ...]], grade: Callable[..., float]) -> Grades:
    """The grade of each of `pairs`: the lowest, 0, where `grade` met its limit."""
    grades, overran = [], 0
    for pair in pairs:
        try:
            grades.append(float(grade(*pair)))
        except OverLimitError:
            grades.append(0.0)
            overran += 1
    return Grades(grades, overran)


def most_seconds(completions: Sequence[Any], **columns: Any) -> float:
    """Seconds after which `graded` is done with so many completions, whatever they are."""
    return len(completions) * (MOST * _PATIENCE + _START) + _START


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    return line if line.endswith("\n") else ""


def serve(made_by: str, seconds: float) -> None:
    """In the process: one request per line of standard input, one answer per line of standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    _contain()
    try:
        module, _, name = made_by.partition(":")
        function: Function = getattr(importlib.import_module(module), name)()
    except Exception as error:
        return _answer(answers, "refused", str(error))
    _answer(answers, "ready", None)
    for request in sys.stdin:
        _allow(seconds)
        try:
            _answer(answers, "value", function(*json.loads(request)))
        except MemoryError:
            _answer(answers, "over", None)


def _answer(answers: IO[str], outcome: str, value: Any) -> None:
    answers.write(json.dumps([outcome, value]) + "\n")
    answers.flush()


def _contain() -> None:
    """End with the parent, leave no core file, take no more memory than is allowed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):  # already less
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))


def _allow(seconds: float) -> None:
    """Allow one more call its processor time; the kernel ends the process if it takes more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), most))
