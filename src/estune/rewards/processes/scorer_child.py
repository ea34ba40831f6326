"""The process that calls reward functions, so that nothing that they do reaches the trainer.

It reads requests from its standard input and writes answers to its standard output, both framed and pickled; what a
function prints goes to standard error. It is started by `process.py` in a session of its own. Its keeper ends it, and all that
it started, when the trainer is gone.
"""

import asyncio
import contextlib
import ctypes
import os
import pickle
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from estune.common.visible import one_line
from estune.rewards.call import Answer, Call, Failure, answer

FRAME = struct.Struct("<Q")
_PR_SET_CHILD_SUBREAPER = 36
_LEFT_BEHIND = 64  # threads and children that a scorer may have after a call before it is replaced


@dataclass(frozen=True)
class Setup:
    """What a scorer is told first."""

    memory: int  # bytes
    timeout: float  # seconds a call
    cores: int
    concurrency: int  # calls of an async function at a time


@dataclass(frozen=True)
class ScorerRequest:
    """Calls of one function; `function` are its bytes when this scorer has not had them yet."""

    index: int
    function: bytes | None
    calls: list[Call]


@dataclass(frozen=True)
class ScorerResponse:
    """The answers, or why the function could not be loaded; `worn` when the process should be replaced."""

    answers: list[Answer]
    refused: str = ""
    worn: bool = False


def main(parent: int) -> None:
    if sys.platform == "linux":
        from estune.rewards.processes.keeper import keep

        keep(parent)
    requests, responses = _streams()
    setup: Setup = pickle.loads(_read(requests) or b"")
    _contain(setup)
    loop = asyncio.new_event_loop()
    functions: dict[int, Callable[..., Any]] = {}
    while (frame := _read(requests)) is not None:
        response = _respond(pickle.loads(frame), functions, setup, loop)
        try:
            _write(responses, pickle.dumps(response))
        except Exception as error:  # what the function logged
            said = f"logged something that cannot be sent ({type(error).__name__}: {one_line(error, 200)})"
            _write(responses, pickle.dumps(ScorerResponse([Failure(said)] * len(response.answers))))


def _respond(
    request: ScorerRequest,
    functions: dict[int, Callable[..., Any]],
    setup: Setup,
    loop: asyncio.AbstractEventLoop,
) -> ScorerResponse:
    if request.function is not None:
        try:
            functions[request.index] = pickle.loads(request.function)
        except BaseException as error:  # it runs the user's module
            return ScorerResponse([], refused=f"{type(error).__name__}: {one_line(error, 200)}")
    _allow(setup)
    with _place_kept():
        answers = answer(
            functions[request.index],
            request.calls,
            loop,
            limit=setup.concurrency,
            timeout=setup.timeout,
        )
    return ScorerResponse(answers, worn=threading.active_count() + _children() > _LEFT_BEHIND)


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """The channels of requests and responses, out of the way of what reads standard input or prints."""
    requests, responses = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, responses


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(FRAME.size)
    return stream.read(*FRAME.unpack(head)) if len(head) == FRAME.size else None


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(FRAME.pack(len(data)) + data)
    stream.flush()


def _contain(setup: Setup) -> None:
    """Keep hold of whatever is started here, take no more memory than is allowed, leave no core file."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):  # already less
            # Not the address space, of which GPU libraries reserve far more than they use.
            resource.setrlimit(resource.RLIMIT_DATA, (setup.memory, setup.memory))


def _allow(setup: Setup) -> None:
    """Processor time for one more request; what is left behind by a killed scorer is ended by it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        seconds = int(time.process_time() + 10 + 2 * setup.timeout * setup.cores)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))


@contextlib.contextmanager
def _place_kept() -> Iterator[None]:
    """The working folder and the environment are afterwards what they were."""
    folder, environment = os.getcwd(), dict(os.environ)
    try:
        yield
    finally:
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(folder)


def _children() -> int:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return len(file.read().split())
    except OSError:
        return 0
