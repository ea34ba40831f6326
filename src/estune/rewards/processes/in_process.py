"""Call a reward function in the trainer's process, because a copy of it would not share its state.

Such a call cannot be killed. If it takes too long, it continues in its thread and its result is
ignored. If it crashes the process, the run ends and can be resumed.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from estune.rewards.call import (
    Call,
    CallResult,
    call_function,
    failure_of,
    seconds_for,
    timed_out,
)
from estune.rewards.processes.patience import done_within

_Queue = queue.SimpleQueue["tuple[list[Call], Future[list[CallResult]]] | None"]


class InProcess:
    """Calls one function in a thread of this process."""

    def __init__(self, function: Callable[..., Any], timeout: float, concurrency: int) -> None:
        self._function, self._timeout, self._concurrency = function, timeout, concurrency
        self._lock = asyncio.Lock()
        self._queue: _Queue | None = None

    async def call(self, calls: list[Call]) -> list[CallResult]:
        """Return the results of `calls`; simultaneous requests are served one after another."""
        async with self._lock:
            seconds = seconds_for(calls, self._timeout, self._concurrency)
            results = asyncio.wrap_future(self._submit(calls))
            if await done_within(results, seconds):
                return await results
            self._queue = None  # this thread is busy: the next call starts another
            return [timed_out(self._timeout)] * len(calls)

    def end(self) -> None:
        """End the thread once it is idle."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None

    def _submit(self, calls: list[Call]) -> "Future[list[CallResult]]":
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            thread = threading.Thread(target=self._serve, args=[self._queue], daemon=True)
            thread.name = "estune-reward"
            thread.start()
        done: Future[list[CallResult]] = Future()
        self._queue.put((calls, done))
        return done

    def _serve(self, requests: _Queue) -> None:
        loop = asyncio.new_event_loop()
        limits = self._concurrency, self._timeout
        while (request := requests.get()) is not None:
            calls, done = request
            try:
                done.set_result(call_function(self._function, calls, loop, *limits))
            except BaseException as error:  # such as SystemExit in an async function
                done.set_result([failure_of(self._function, error)] * len(calls))
        loop.close()
