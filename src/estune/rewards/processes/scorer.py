"""The trainer's end of a scorer's process: start it, ask it, and end it with all that it started."""

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

from estune.common.visible import one_line
from estune.errors import clean
from estune.rewards.call import Answer, Call, Failure, timed_out
from estune.rewards.processes.descendants import end_kept, usage
from estune.rewards.processes.patience import done_within
from estune.rewards.processes.scorer_child import FRAME, ScorerRequest, ScorerResponse, Setup

logger = logging.getLogger(__name__)

_START = 120  # seconds that a scorer may take to start and to import a function's module
_LOOK = 1.0  # seconds between looks at the memory of a scorer that is busy
_HEARD = 64 << 10  # bytes that are shown of what a scorer prints
_PROGRAM = "import sys; sys.path[:] = {path!r}; from estune.rewards.processes.scorer_child import main; main({parent})"


class Refused(Exception):
    """A function could not be loaded in another process."""


class Scorer:
    """One process that calls reward functions. `alive` is false once it has to be replaced."""

    def __init__(self, process: asyncio.subprocess.Process, setup: Setup) -> None:
        self._process = process
        self._setup = setup
        self._has: set[int] = set()  # functions that it was sent
        self._hearing = asyncio.ensure_future(self._hear())
        self.alive = True

    @classmethod
    async def start(cls, setup: Setup) -> "Scorer":
        # Neither fork nor the import of the user's script, which multiprocessing would run again.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM.format(path=sys.path, parent=os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        scorer = cls(process, setup)
        await scorer._send(pickle.dumps(setup))
        return scorer

    async def ask(self, index: int, function: bytes, calls: Sequence[Call]) -> list[Answer]:
        """The answers to `calls` of a function; a process that dies, hangs or grows too large is ended, and each call a Failure.

        Raises:
            Refused: the function cannot be loaded there, or its arguments cannot be sent.
        """
        if index not in self._has:
            await self._teach(index, function)
        try:
            frame = cloudpickle.dumps(ScorerRequest(index, None, [_light(call) for call in calls]))
        except Exception as error:  # a column of something that cannot be pickled; cloudpickle sends classes of the user's script, too
            raise Refused(
                f"its arguments cannot be sent ({type(error).__name__}: {one_line(error, 200)})"
            ) from None
        seconds = max(call.allowed(self._setup.timeout) for call in calls)
        response = await self._exchange(frame, seconds * -(-len(calls) // self._setup.concurrency))
        if isinstance(response, Failure):
            return [response] * len(calls)
        if response.worn:
            await self.end()
        return response.answers

    async def _teach(self, index: int, function: bytes) -> None:
        """Have it load a function, which may import much, before any time is counted."""
        response = await self._exchange(pickle.dumps(ScorerRequest(index, function, [])), _START)
        if isinstance(response, Failure) or response.refused:
            why = (
                f"it did not load within {_START} s"
                if isinstance(response, Failure)
                else response.refused
            )
            raise Refused(f"it cannot be loaded in another process ({why})")
        self._has.add(index)

    async def end(self) -> None:
        """End it and all that descends from it."""
        if self.alive:
            self.alive = False
            if self._process.returncode is None:  # else its number may be another's by now
                end_kept(self._process.pid)
        await self._process.wait()
        self._hearing.cancel()

    async def _exchange(self, frame: bytes, seconds: float) -> ScorerResponse | Failure:
        asked = asyncio.ensure_future(self._asked(frame))
        try:
            failure = await self._watched(asked, seconds)
        finally:
            asked.cancel()
        if failure is None and not asked.cancelled() and asked.exception() is None:
            return asked.result()
        if failure is None:  # it died; how is known in a moment
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), 1)
        status = _status(self._process.returncode)
        await self.end()
        return failure or Failure(f"ended the process that it was called in ({status})")

    async def _watched(
        self, asked: "asyncio.Future[ScorerResponse | Failure]", seconds: float
    ) -> Failure | None:
        """Wait for `asked`; a Failure when it has to be given up."""
        while seconds > 0:
            if await done_within(asked, min(seconds, _LOOK)):
                return None
            if usage(self._process.pid, self._setup.memory).memory > self._setup.memory:
                return Failure(
                    f"took more than {self._setup.memory / 2**30:.3g} GiB of memory with its children (reward_memory)"
                )
            seconds -= _LOOK
        return timed_out(self._setup.timeout)

    async def _asked(self, frame: bytes) -> ScorerResponse | Failure:
        await self._send(frame)
        assert self._process.stdout is not None
        head = await self._process.stdout.readexactly(FRAME.size)
        data = await self._process.stdout.readexactly(*FRAME.unpack(head))
        try:
            response: ScorerResponse = pickle.loads(data)
        except BaseException as error:  # what the function logged runs its own code when it is read
            return Failure(
                f"logged something that cannot be received ({type(error).__name__}: {one_line(error, 200)})"
            )
        return response

    async def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died: the answer that doesn't come says so
            self._process.stdin.write(FRAME.pack(len(frame)) + frame)
            await self._process.stdin.drain()

    async def _hear(self) -> None:
        """Show what functions print, up to a limit, and take the rest off their hands."""
        assert self._process.stderr is not None
        heard, text = (
            0,
            codecs.getincrementaldecoder("utf-8")("replace"),
        )  # a character may come in two reads
        while data := await self._process.stderr.read(1 << 16):
            if heard < _HEARD:
                print(clean(text.decode(data[: _HEARD - heard])), end="", file=sys.stderr)
                heard += len(data)
                if heard >= _HEARD:
                    logger.warning(
                        "a reward function prints much; no more of it is shown from this process"
                    )


def _light(call: Call) -> Call:
    """`call` with transformers' TrainerState as a plain object of the same attributes: its class takes seconds to import, and
    all but the last entry of its history, which grows with the run, stays here."""
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
