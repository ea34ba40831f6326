"""Reward functions that have to be called in this process, since they carry state along that a copy would not share.

They can be given up, but not killed: what outlasts its time is left behind, and a crash takes the run along (it can be resumed).
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from estune.rewards.call import Answer, Call, answer, failure_of, timed_out
from estune.rewards.processes.patience import done_within

_Queue = queue.SimpleQueue["tuple[list[Call], Future[list[Answer]]] | None"]


class InProcess:
    """Calls one function in a thread of this process. A call that outlasts its time is left behind in its thread."""

    def __init__(self, function: Callable[..., Any], *, timeout: float, concurrency: int) -> None:
        self._function, self._timeout, self._concurrency = function, timeout, concurrency
        self._turn: asyncio.Lock | None = None
        self._queue: _Queue | None = None

    async def ask(self, calls: list[Call]) -> list[Answer]:
        """The answers to `calls`, which have their turn one after the other."""
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            return await self._ask(calls)

    def end(self) -> None:
        """Let the thread go once it is idle."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None

    async def _ask(self, calls: list[Call]) -> list[Answer]:
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            threading.Thread(
                target=self._serve, args=[self._queue], name="estune-reward", daemon=True
            ).start()
        done: Future[list[Answer]] = Future()
        self._queue.put((calls, done))
        seconds = max(call.allowed(self._timeout) for call in calls) * -(
            -len(calls) // self._concurrency
        )
        waiting = asyncio.wrap_future(done)
        if not await done_within(waiting, seconds):
            self._queue = None
            return [timed_out(self._timeout)] * len(calls)
        return await waiting

    def _serve(self, requests: _Queue) -> None:
        loop = asyncio.new_event_loop()
        while (request := requests.get()) is not None:
            calls, done = request
            try:
                done.set_result(
                    answer(
                        self._function, calls, loop, limit=self._concurrency, timeout=self._timeout
                    )
                )
            except BaseException as error:  # such as SystemExit in an async function, which ends the loop that waits for it
                done.set_result([failure_of(self._function, error)] * len(calls))
        loop.close()
