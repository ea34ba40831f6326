"""The reward process: it calls reward functions, so that a crash or leak cannot harm the trainer.

It reads requests from standard input and writes responses to standard output. Each is pickled and
preceded by its length. Whatever a function prints goes to standard error. reward_process.py starts
this program in a session of its own. When the trainer ends, a reaper (reaper.py) ends this process
and everything that it started.
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
_MAX_LEFT_BEHIND = 64  # threads and children after a call; with more, the process is replaced


@dataclass(frozen=True)
class Setup:
    """The first message to a reward process: its limits.

    memory: bytes.
    timeout: seconds per call.
    concurrency: simultaneous calls of an async function.
    """

    memory: int
    timeout: float
    cores: int
    concurrency: int


@dataclass(frozen=True)
class RewardRequest:
    """Calls of one reward function.

    function: the pickled function, or None if the process has loaded it already.
    """

    index: int
    function: bytes | None
    calls: list[Call]


@dataclass(frozen=True)
class RewardResponse:
    """The results of the calls.

    refused: why the function cannot be loaded; "" if it was loaded.
    must_be_replaced: whether calls left too many threads or child processes behind.
    """

    results: list[CallResult]
    refused: str = ""
    must_be_replaced: bool = False


def main(parent: int) -> None:
    """Serve requests until standard input ends."""
    if sys.platform == "linux":
        from estune.rewards.processes.reaper import fork_under_reaper

        fork_under_reaper(parent)
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
        except Exception as error:  # raised while pickling what the function logged
            failure = Failure(f"logged something that cannot be sent ({described(error)})")
            _write(responses, pickle.dumps(RewardResponse([failure] * len(response.results))))


def _respond(
    request: RewardRequest,
    functions: dict[int, Callable[..., Any]],
    setup: Setup,
    loop: asyncio.AbstractEventLoop,
) -> RewardResponse:
    if request.function is not None:
        try:
            functions[request.index] = pickle.loads(request.function)
        except BaseException as error:  # raised by the user's module
            return RewardResponse([], refused=described(error))
    allow_cpu(10 + 2 * setup.timeout * setup.cores)
    function = functions[request.index]
    with _restored_surroundings():
        results = call_function(function, request.calls, loop, setup.concurrency, setup.timeout)
    left_behind = threading.active_count() + _count_children()
    return RewardResponse(results, must_be_replaced=left_behind > _MAX_LEFT_BEHIND)


def _streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the streams of requests and responses, moved away from descriptors 0 and 1.

    A function that reads standard input then finds it empty, and what it prints goes to standard
    error.
    """
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
def _restored_surroundings() -> Iterator[None]:
    """Restore the working folder and the environment variables after the block."""
    folder, environment = os.getcwd(), dict(os.environ)
    try:
        yield
    finally:
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(folder)


def _count_children() -> int:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return len(file.read().split())
    except OSError:
        return 0
