"""The trainer's end of a reward process: start it, send it calls, and end it with its children."""

import asyncio
import codecs
import contextlib
import logging
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import cloudpickle

from estune.errors import clean
from estune.rewards.call import Call, CallResult, Failure, described, seconds_for, timed_out
from estune.rewards.processes.descendants import end_with_descendants, usage
from estune.rewards.processes.patience import done_within
from estune.rewards.processes.reward_process_child import (
    FRAME,
    RewardRequest,
    RewardResponse,
    Setup,
)

logger = logging.getLogger(__name__)

_LOAD_SECONDS = 120  # the longest time to start a process and import a function's module
_MEMORY_INTERVAL = 1.0  # seconds between measurements of a busy process's memory
_MAX_PRINTED = 64 << 10  # bytes that are shown of what functions print in a process
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from estune.rewards.processes.reward_process_child import main; main({parent})"
)


class NotPortable(Exception):
    """A function cannot be called in another process; the message says why."""


class RewardProcess:
    """One process that calls reward functions. It must be replaced once `alive` is False."""

    def __init__(self, process: asyncio.subprocess.Process, setup: Setup) -> None:
        self._process = process
        self._setup = setup
        self._loaded: set[int] = set()  # indices of the functions that it has
        self._output = asyncio.ensure_future(self._show_output())
        self.alive = True

    @classmethod
    async def start(cls, setup: Setup) -> "RewardProcess":
        """Start a process. It is not forked, and it does not import the user's script."""
        pipe = asyncio.subprocess.PIPE
        program = _PROGRAM.format(path=sys.path, parent=os.getpid())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
        started = cls(process, setup)
        await started._send(pickle.dumps(setup))
        return started

    async def call(self, index: int, function: bytes, calls: Sequence[Call]) -> list[CallResult]:
        """Return the results of `calls` of the pickled `function`, whose index is `index`.

        If the process dies, hangs or takes too much memory, it is ended, and all calls fail.

        Raises:
            NotPortable: the process cannot load the function, or the arguments cannot be sent.
        """
        if index not in self._loaded:
            await self._load(index, function)
        try:  # unlike pickle, cloudpickle also sends objects of classes from the user's script
            frame = cloudpickle.dumps(
                RewardRequest(index, None, list(map(_without_trainer_class, calls)))
            )
        except Exception as error:
            raise NotPortable(f"its arguments cannot be sent ({described(error)})") from None
        seconds = seconds_for(calls, self._setup.timeout, self._setup.concurrency)
        response = await self._exchange(frame, seconds)
        if isinstance(response, Failure):
            return [response] * len(calls)
        if response.must_be_replaced:
            await self.end()
        return response.results

    async def end(self) -> None:
        """End the process and all its descendants."""
        if self.alive:
            self.alive = False
            if self._process.returncode is None:  # else another process may have its id by now
                end_with_descendants(self._process.pid)
        await self._process.wait()
        self._output.cancel()

    async def _load(self, index: int, function: bytes) -> None:
        """Let the process load a function before its calls are timed, as imports may take long."""
        request = pickle.dumps(RewardRequest(index, function, []))
        response = await self._exchange(request, _LOAD_SECONDS)
        if isinstance(response, Failure):
            reason = f"it did not load within {_LOAD_SECONDS} s"
        else:
            reason = response.refused
        if reason:
            raise NotPortable(f"it cannot be loaded in another process ({reason})")
        self._loaded.add(index)

    async def _exchange(self, frame: bytes, seconds: float) -> RewardResponse | Failure:
        """Send `frame` and return the response, or a Failure if there is none in time."""
        response = asyncio.ensure_future(self._send_and_receive(frame))
        try:
            return await self._wait_within_limits(response, seconds)
        finally:
            response.cancel()

    async def _wait_within_limits(
        self, response: "asyncio.Future[RewardResponse | Failure]", seconds: float
    ) -> RewardResponse | Failure:
        """Wait for `response`; end the process if it takes too long or too much memory."""
        max_memory = self._setup.memory
        failure = timed_out(self._setup.timeout)
        while seconds > 0:
            if await done_within(response, min(seconds, _MEMORY_INTERVAL)):
                return await response
            if usage(self._process.pid, max_memory).memory > max_memory:
                size = f"{max_memory / 2**30:.3g} GiB of memory"
                failure = Failure(f"took more than {size} with its children (reward_memory)")
                break
            seconds -= _MEMORY_INTERVAL
        await self.end()
        return failure

    async def _send_and_receive(self, frame: bytes) -> RewardResponse | Failure:
        await self._send(frame)
        assert self._process.stdout is not None
        try:
            head = await self._process.stdout.readexactly(FRAME.size)
            data = await self._process.stdout.readexactly(*FRAME.unpack(head))
        except (EOFError, OSError):
            return await self._failure_of_dead_process()
        try:
            response: RewardResponse = pickle.loads(data)
        except BaseException as error:  # raised by a class of what the function logged
            return Failure(f"logged something that cannot be received ({described(error)})")
        return response

    async def _failure_of_dead_process(self) -> Failure:
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 1)  # so that the exit status is known
        status = _exit_text(self._process.returncode)
        await self.end()
        return Failure(f"ended the process that it was called in ({status})")

    async def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(
            ConnectionError
        ):  # it died, which reading the response will report
            self._process.stdin.write(FRAME.pack(len(frame)) + frame)
            await self._process.stdin.drain()

    async def _show_output(self) -> None:
        """Show the start of what functions print, and discard the rest.

        All of it must be read, because a full pipe would block the functions.
        """
        assert self._process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        left = _MAX_PRINTED
        while data := await self._process.stderr.read(1 << 16):
            if left <= 0:
                continue
            print(clean(decoder.decode(data[:left])), end="", file=sys.stderr)
            left -= len(data)
            if left <= 0:
                logger.warning("a reward function prints much; the rest is not shown")


def _without_trainer_class(call: Call) -> Call:
    """Return `call` with transformers' TrainerState replaced by an object of the same attributes.

    The reward process would need seconds to import the class TrainerState. Of `log_history`, which
    grows during the run, only the last entry is sent.
    """
    state = call.shared.get("trainer_state")
    if not is_dataclass(state) or isinstance(state, type):
        return call
    attributes = {each.name: getattr(state, each.name) for each in fields(state)}
    attributes |= {"log_history": attributes.get("log_history", [])[-1:], "stateful_callbacks": {}}
    return replace(call, shared=call.shared | {"trainer_state": SimpleNamespace(**attributes)})


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
