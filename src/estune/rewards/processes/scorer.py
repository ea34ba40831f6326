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
from estune.rewards.processes.descendants import end_kept, usage
from estune.rewards.processes.patience import done_within
from estune.rewards.processes.scorer_child import FRAME, ScorerRequest, ScorerResponse, Setup

logger = logging.getLogger(__name__)

_START = 120  # seconds in which a scorer must start and import a function's module
_LOOK = 1.0  # seconds between looks at a busy scorer's memory
_PRINTED = 64 << 10  # bytes of a scorer's output that are shown
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; "
    "from estune.rewards.processes.scorer_child import main; main({parent})"
)


class Refused(Exception):
    """A function cannot be called in another process; the message says why."""


class Scorer:
    """One process that calls reward functions. Once `alive` is False it must be replaced."""

    def __init__(self, process: asyncio.subprocess.Process, setup: Setup) -> None:
        self._process = process
        self._setup = setup
        self._loaded: set[int] = set()  # functions that it has
        self._output = asyncio.ensure_future(self._show_output())
        self.alive = True

    @classmethod
    async def start(cls, setup: Setup) -> "Scorer":
        """Start a process. It neither forks this one nor imports the user's script."""
        pipe = asyncio.subprocess.PIPE
        program = _PROGRAM.format(path=sys.path, parent=os.getpid())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
        scorer = cls(process, setup)
        await scorer._send(pickle.dumps(setup))
        return scorer

    async def call(self, index: int, function: bytes, calls: Sequence[Call]) -> list[CallResult]:
        """Return the results of `calls` of function `index`.

        If the process dies, hangs or takes too much memory, it is ended, and all calls fail.

        Raises:
            Refused: the function cannot be loaded there, or its arguments cannot be sent.
        """
        if index not in self._loaded:
            await self._load(index, function)
        try:  # cloudpickle also sends objects of classes from the user's script
            frame = cloudpickle.dumps(ScorerRequest(index, None, list(map(_light, calls))))
        except Exception as error:
            raise Refused(f"its arguments cannot be sent ({described(error)})") from None
        seconds = seconds_for(calls, self._setup.timeout, self._setup.concurrency)
        response = await self._exchange(frame, seconds)
        if isinstance(response, Failure):
            return [response] * len(calls)
        if response.worn:
            await self.end()
        return response.results

    async def end(self) -> None:
        """End the process and all its descendants."""
        if self.alive:
            self.alive = False
            if self._process.returncode is None:  # once it has ended, its number may be another's
                end_kept(self._process.pid)
        await self._process.wait()
        self._output.cancel()

    async def _load(self, index: int, function: bytes) -> None:
        """Have the process load a function before its calls are timed: imports may take long."""
        response = await self._exchange(pickle.dumps(ScorerRequest(index, function, [])), _START)
        late = f"it did not load within {_START} s"
        why = late if isinstance(response, Failure) else response.refused
        if why:
            raise Refused(f"it cannot be loaded in another process ({why})")
        self._loaded.add(index)

    async def _exchange(self, frame: bytes, seconds: float) -> ScorerResponse | Failure:
        """Return the response to `frame`, or a Failure."""
        response = asyncio.ensure_future(self._response(frame))
        try:
            return await self._watched(response, seconds)
        finally:
            response.cancel()

    async def _watched(
        self, response: "asyncio.Future[ScorerResponse | Failure]", seconds: float
    ) -> ScorerResponse | Failure:
        """Wait for `response`; end the process if it takes too long or too much memory."""
        most = self._setup.memory
        failure = timed_out(self._setup.timeout)
        while seconds > 0:
            if await done_within(response, min(seconds, _LOOK)):
                return await response
            if usage(self._process.pid, most).memory > most:
                size = f"{most / 2**30:.3g} GiB of memory"
                failure = Failure(f"took more than {size} with its children (reward_memory)")
                break
            seconds -= _LOOK
        await self.end()
        return failure

    async def _response(self, frame: bytes) -> ScorerResponse | Failure:
        await self._send(frame)
        assert self._process.stdout is not None
        try:
            head = await self._process.stdout.readexactly(FRAME.size)
            data = await self._process.stdout.readexactly(*FRAME.unpack(head))
        except (EOFError, OSError):
            return await self._died()
        try:
            response: ScorerResponse = pickle.loads(data)
        except BaseException as error:  # raised by the code of what the function logged
            return Failure(f"logged something that cannot be received ({described(error)})")
        return response

    async def _died(self) -> Failure:
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 1)  # for its exit status
        status = _status(self._process.returncode)
        await self.end()
        return Failure(f"ended the process that it was called in ({status})")

    async def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died, as the missing response will show
            self._process.stdin.write(FRAME.pack(len(frame)) + frame)
            await self._process.stdin.drain()

    async def _show_output(self) -> None:
        """Show the start of what functions print, and read the rest so that they do not block."""
        assert self._process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        left = _PRINTED
        while data := await self._process.stderr.read(1 << 16):
            if left <= 0:
                continue
            print(clean(decoder.decode(data[:left])), end="", file=sys.stderr)
            left -= len(data)
            if left <= 0:
                logger.warning("a reward function prints much; the rest of it is not shown")


def _light(call: Call) -> Call:
    """Return `call` with transformers' TrainerState as a plain object of the same attributes.

    Its class takes seconds to import. Of its history, which grows with the run, only the last entry
    is sent.
    """
    state = call.shared.get("trainer_state")
    if not is_dataclass(state) or isinstance(state, type):
        return call
    attributes = {each.name: getattr(state, each.name) for each in fields(state)}
    attributes |= {"log_history": attributes.get("log_history", [])[-1:], "stateful_callbacks": {}}
    return replace(call, shared=call.shared | {"trainer_state": SimpleNamespace(**attributes)})


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
