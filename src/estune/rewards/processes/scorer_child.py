"""The process that calls reward functions, so that nothing they do reaches the trainer.

It reads requests from standard input and writes responses to standard output, both pickled and
preceded by their length; what a function prints goes to standard error. `scorer.py` starts it in a
session of its own. Its keeper ends it, with all that it started, when the trainer ends.
"""

import asyncio
import contextlib
import os
import pickle
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from estune.rewards.call import Call, CallResult, Failure, call_function, described
from estune.rewards.processes.containment import adopt_orphans, allow_cpu, limit_memory

FRAME = struct.Struct("<Q")
_LEFT_BEHIND = 64  # threads and children after a call, above which a scorer is replaced


@dataclass(frozen=True)
class Setup:
    """The first message to a scorer.

    memory: bytes; timeout: seconds per call; concurrency: calls of an async function at a time.
    """

    memory: int
    timeout: float
    cores: int
    concurrency: int


@dataclass(frozen=True)
class ScorerRequest:
    """Calls of one function; `function` holds its bytes unless this scorer has it already."""

    index: int
    function: bytes | None
    calls: list[Call]


@dataclass(frozen=True)
class ScorerResponse:
    """The results, or why the function cannot be loaded.

    worn: this process left threads or children behind and must be replaced.
    """

    results: list[CallResult]
    refused: str = ""
    worn: bool = False


def main(parent: int) -> None:
    """Serve requests until standard input ends."""
    if sys.platform == "linux":
        from estune.rewards.processes.keeper import keep

        keep(parent)
    requests, responses = _streams()
    setup: Setup = pickle.loads(_read(requests) or b"")
    adopt_orphans()
    limit_memory(setup.memory)
    loop = asyncio.new_event_loop()
    functions: dict[int, Callable[..., Any]] = {}
    while (frame := _read(requests)) is not None:
        response = _respond(pickle.loads(frame), functions, setup, loop)
        try:
            _write(responses, pickle.dumps(response))
        except Exception as error:  # raised by what the function logged
            failure = Failure(f"logged something that cannot be sent ({described(error)})")
            _write(responses, pickle.dumps(ScorerResponse([failure] * len(response.results))))


def _respond(
    request: ScorerRequest,
    functions: dict[int, Callable[..., Any]],
    setup: Setup,
    loop: asyncio.AbstractEventLoop,
) -> ScorerResponse:
    if request.function is not None:
        try:
            functions[request.index] = pickle.loads(request.function)
        except BaseException as error:  # raised by the user's module
            return ScorerResponse([], refused=described(error))
    allow_cpu(10 + 2 * setup.timeout * setup.cores)
    function, limits = functions[request.index], (setup.concurrency, setup.timeout)
    with _surroundings_restored():
        results = call_function(function, request.calls, loop, *limits)
    return ScorerResponse(results, worn=threading.active_count() + _children() > _LEFT_BEHIND)


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Move the two channels away from the descriptors that functions read and print to."""
    requests, responses = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, responses


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(FRAME.size)
    return stream.read(*FRAME.unpack(head)) if len(head) == FRAME.size else None


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(FRAME.pack(len(data)) + data)
    stream.flush()


@contextlib.contextmanager
def _surroundings_restored() -> Iterator[None]:
    """Restore the working folder and the environment afterwards."""
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
