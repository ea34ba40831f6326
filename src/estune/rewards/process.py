"""The trainer's end of a scorer's process: start it, ask it, and end it with all that it started."""

import asyncio
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
import psutil

from estune.rewards.call import Answer, Call, Failure, timed_out
from estune.rewards.scorer import FRAME, Request, Response, Setup

logger = logging.getLogger(__name__)

_START = 120  # seconds that a scorer may take to start and to import a function's module
_LOOK = 1.0  # seconds between looks at the memory of a scorer that is busy
_HEARD = 64 << 10  # bytes that are shown of what a scorer prints
_PROGRAM = "import sys; sys.path[:] = {path!r}; from estune.rewards.scorer import main; main()"


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
            _PROGRAM.format(path=sys.path),
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
            frame = cloudpickle.dumps(Request(index, None, [_light(call) for call in calls]))
        except Exception as error:  # a column of something that cannot be pickled; cloudpickle sends classes of the user's script, too
            raise Refused(f"its arguments cannot be sent ({type(error).__name__}: {error})") from None
        response = await self._exchange(frame, self._setup.timeout * -(-len(calls) // self._setup.concurrency))
        if isinstance(response, Failure):
            return [response] * len(calls)
        if response.worn:
            await self.end()
        return response.answers

    async def _teach(self, index: int, function: bytes) -> None:
        """Have it load a function, which may import much, before any time is counted."""
        response = await self._exchange(pickle.dumps(Request(index, function, [])), _START)
        if isinstance(response, Failure) or response.refused:
            why = f"it did not load within {_START} s" if isinstance(response, Failure) else response.refused
            raise Refused(f"it cannot be loaded in another process ({why})")
        self._has.add(index)

    async def end(self) -> None:
        """Kill it and all that descends from it."""
        if self.alive:
            self.alive = False
            _kill(self._process.pid, ended=self._process.returncode is not None)
        await self._process.wait()
        self._hearing.cancel()

    async def _exchange(self, frame: bytes, seconds: float) -> Response | Failure:
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

    async def _watched(self, asked: "asyncio.Future[Response]", seconds: float) -> Failure | None:
        """Wait for `asked`; a Failure when it has to be given up."""
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while not asked.done():
            left = until - clock()
            if left <= 0:
                return timed_out(self._setup.timeout)
            await asyncio.wait([asked], timeout=min(left, _LOOK))
            if not asked.done() and _memory(self._process.pid) > self._setup.memory:
                return Failure(f"took more than {self._setup.memory / 2**30:.3g} GiB of memory with its children (reward_memory)")
        return None

    async def _asked(self, frame: bytes) -> Response:
        await self._send(frame)
        assert self._process.stdout is not None
        head = await self._process.stdout.readexactly(FRAME.size)
        response: Response = pickle.loads(await self._process.stdout.readexactly(*FRAME.unpack(head)))
        return response

    async def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it died: the answer that doesn't come says so
            self._process.stdin.write(FRAME.pack(len(frame)) + frame)
            await self._process.stdin.drain()

    async def _hear(self) -> None:
        """Show what functions print, up to a limit, and take the rest off their hands."""
        assert self._process.stderr is not None
        heard = 0
        while data := await self._process.stderr.read(1 << 16):
            if heard < _HEARD:
                print(data[: _HEARD - heard].decode(errors="replace"), end="", file=sys.stderr)
                heard += len(data)
                if heard >= _HEARD:
                    logger.warning("a reward function prints much; no more of it is shown from this process")


def _light(call: Call) -> Call:
    """`call` with transformers' TrainerState as a plain object of the same attributes: its class takes seconds to import, and
    all but the last entry of its history, which grows with the run, stays here."""
    state = call.shared.get("trainer_state")
    if not is_dataclass(state) or isinstance(state, type):
        return call
    attributes = {each.name: getattr(state, each.name) for each in fields(state)}
    attributes |= {"log_history": attributes.get("log_history", [])[-1:], "stateful_callbacks": {}}
    return replace(call, shared=call.shared | {"trainer_state": SimpleNamespace(**attributes)})


def _kill(pid: int, *, ended: bool) -> None:
    """SIGKILL to the process, to its group, and, unless it `ended` already, to what descends from it in other sessions."""
    if not ended:  # else its number may be another's by now
        with contextlib.suppress(psutil.NoSuchProcess):
            _kill_descendants(psutil.Process(pid))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill_descendants(root: psutil.Process) -> None:
    root.suspend()  # so that it starts nothing more
    for _ in range(20):  # its children may start some meanwhile
        alive = [child for child in root.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _memory(pid: int) -> int:
    """Bytes that the process and its descendants have in memory."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
