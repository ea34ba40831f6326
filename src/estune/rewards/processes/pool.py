"""Call reward functions in parallel with generation, each for a limited time.

As in TRL, a function is called once per member with all its completions. When such a call raises,
crashes or takes too long, the completions are scored one by one, so that only those that cause the
failure lose their reward. From then on this function is always called once per completion. A thread
with an event loop manages the reward processes (reward_process.py).
"""

import asyncio
import contextlib
import logging
import math
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from estune.common.moments import mean
from estune.common.resources import cores
from estune.rewards.call import Call, CallResult, Failure, Returned
from estune.rewards.marks import is_async, prepare, source
from estune.rewards.processes.in_process import InProcess
from estune.rewards.processes.portable import portable
from estune.rewards.processes.reward_process import NotPortable, RewardProcess
from estune.rewards.processes.reward_process_child import Setup

logger = logging.getLogger(__name__)

_NO_FILE = "<dynamic-code>"  # cloudpickle's file name for functions whose code it copies
_MATH_VERIFY_ADVICE = "; math-verify's own time limits fail there, so turn them off"


@dataclass(frozen=True)
class RewardLimits:
    """Limits on reward functions.

    workers: maximum number of reward processes; 0 calls all functions in this process.
    timeout: seconds per call.
    memory: GiB per process; None means a quarter of the machine's memory.
    concurrency: simultaneous calls of an async function.
    """

    workers: int | None = None
    timeout: float = 60.0
    memory: float | None = None
    concurrency: int = 64

    @property
    def processes(self) -> int:
        """The maximum number of processes: by default one per core, between 4 and 16.

        4 even on fewer cores, because many reward functions mostly wait, for example for a server.
        """
        return min(16, max(4, cores())) if self.workers is None else self.workers

    def setup(self) -> Setup:
        """Return the limits that a reward process sets on itself."""
        quarter = psutil.virtual_memory().total // 4
        memory = quarter if self.memory is None else int(self.memory * 2**30)
        return Setup(memory, self.timeout, cores(), self.concurrency)


@dataclass(frozen=True)
class FunctionScores:
    """One function's rewards for one member.

    values: one number per completion, NaN where the function returned None or failed.
    failures: index of a completion → what went wrong.
    overran: how many completions exceeded the function's own time limit.
    """

    values: list[float]
    failures: dict[int, Failure] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    overran: int = 0


class Pool:
    """Calls `functions` by their index, within `limits`."""

    def __init__(
        self, functions: Sequence[Callable[..., Any]], names: Sequence[str], limits: RewardLimits
    ) -> None:
        self._functions, self._names, self._limits = functions, names, limits
        self._pickled: dict[int, bytes] = {}  # functions that reward processes call
        self._in_process: dict[int, InProcess] = {}  # functions that this process calls
        self._per_completion: set[int] = set()  # functions that are called once per completion
        self._idle: list[RewardProcess] = []
        self._loop: _LoopThread | None = None

    def submit(self, index: int, call: Call, *, strict: bool) -> "Future[FunctionScores]":
        """Score a member's completions with function `index`.

        With `strict`, the future raises RewardError if the function fails.
        """
        if self._loop is None:
            self._loop = _LoopThread(self, self._limits.processes)
        work = self._score(self._loop, index, call, strict)
        return asyncio.run_coroutine_threadsafe(work, self._loop.loop)

    def close(self) -> None:
        """End all reward processes; the next call starts new ones."""
        if self._loop is not None:
            self._loop.end()
            self._loop = None
            self._idle.clear()
            for one in self._in_process.values():
                one.end()
            self._in_process.clear()

    async def _score(
        self, loop: "_LoopThread", index: int, call: Call, strict: bool
    ) -> FunctionScores:
        if index not in self._per_completion:
            (result,) = await self._call(loop, index, [call])
            if isinstance(result, Returned):
                return FunctionScores(
                    result.values, {}, result.metrics, result.extra, result.overran
                )
            if strict:
                raise result.as_error(self._names[index])
            if call.count == 1:
                return _merged([result])
            self._call_per_completion_from_now_on(index, result)
        return _merged(await self._call_per_completion(loop, index, call.per_completion()))

    def _call_per_completion_from_now_on(self, index: int, failure: Failure) -> None:
        if index not in self._per_completion:  # another member's call may have failed meanwhile
            message = "reward function %s %s; from now on it is called once per completion"
            logger.warning(message, self._names[index], failure.reason)
        self._per_completion.add(index)

    async def _call_per_completion(
        self, loop: "_LoopThread", index: int, calls: list[Call]
    ) -> list[CallResult]:
        if is_async(self._functions[index]):
            results = await self._call(loop, index, calls)  # concurrently, in one process
            if any(isinstance(one, Returned) for one in results):
                return results
            # One call may have ended the process, so that all failed: make each in another one.
        each = await asyncio.gather(*(self._call(loop, index, [call]) for call in calls))
        return [one for results in each for one in results]

    async def _call(self, loop: "_LoopThread", index: int, calls: list[Call]) -> list[CallResult]:
        async with loop.choosing_process:
            if index not in self._in_process and index not in self._pickled:
                await asyncio.to_thread(prepare, self._functions[index])
                self._choose_process(index)
        if index in self._pickled:
            try:
                return await self._call_in_reward_process(loop, index, calls)
            except NotPortable as error:
                self._stay_in_process(index, str(error))
        return await self._in_process[index].call(calls)

    def _choose_process(self, index: int) -> None:
        """Decide whether function `index` is called in reward processes or in this process."""
        if self._limits.processes == 0:
            self._stay_in_process(index)
            return
        pickled_or_reason = portable(self._functions[index])
        if isinstance(pickled_or_reason, bytes):
            self._pickled[index] = pickled_or_reason
        else:
            self._stay_in_process(index, pickled_or_reason)

    def _stay_in_process(self, index: int, reason: str = "") -> None:
        """Call function `index` in this process from now on; log the reason, if there is one."""
        self._pickled.pop(index, None)
        if index in self._in_process:
            return
        if reason:
            advice = _MATH_VERIFY_ADVICE if "math_verify" in sys.modules else ""
            message = "reward function %s is called in this process, where it can't be killed: %s%s"
            logger.info(message, self._names[index], reason, advice)
        limits = self._limits.timeout, self._limits.concurrency
        self._in_process[index] = InProcess(self._functions[index], *limits)

    async def _call_in_reward_process(
        self, loop: "_LoopThread", index: int, calls: list[Call]
    ) -> list[CallResult]:
        async with loop.process_slots:
            if self._idle:
                process = self._idle.pop()
            else:
                process = await RewardProcess.start(self._limits.setup())
            loop.processes.add(process)
            try:
                results = await process.call(index, self._pickled[index], calls)
                return [_with_file_name(one, self._functions[index]) for one in results]
            finally:
                if process.alive:
                    self._idle.append(process)
                else:
                    loop.processes.discard(process)


class _LoopThread:
    """A thread with an event loop, and the reward processes that it manages.

    It ends when its pool is closed or garbage collected. The thread must live as long as its reward
    processes, because the kernel ends them together with the thread that started them.
    """

    def __init__(self, pool: Pool, max_processes: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.processes: set[RewardProcess] = set()
        self.process_slots = asyncio.Semaphore(max(1, max_processes))
        self.choosing_process = asyncio.Lock()
        self._thread = threading.Thread(target=_run_loop, args=[self.loop], daemon=True)
        self._thread.name = "estune-rewards"
        self._thread.start()
        self._finalizer = weakref.finalize(pool, _schedule_shutdown, self.loop, self.processes)

    def end(self) -> None:
        self._finalizer()
        self._thread.join()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _schedule_shutdown(loop: asyncio.AbstractEventLoop, processes: set[RewardProcess]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended with the interpreter
        asyncio.run_coroutine_threadsafe(_shut_down(loop, processes), loop)


async def _shut_down(loop: asyncio.AbstractEventLoop, processes: set[RewardProcess]) -> None:
    for process in list(processes):
        await process.end()
    processes.clear()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    loop.call_soon(loop.stop)


def _merged(results: Sequence[CallResult]) -> FunctionScores:
    """Merge the results of calls with one completion each.

    A metric becomes the mean over the calls that logged it. A logged column has None for
    completions that failed.
    """
    returned = [one for one in results if isinstance(one, Returned)]
    metrics: dict[str, list[float]] = defaultdict(list)
    for one in returned:
        for name, value in one.metrics.items():
            metrics[name].append(value)
    columns = sorted({name for one in returned for name in one.extra})
    return FunctionScores(
        values=[one.values[0] if isinstance(one, Returned) else math.nan for one in results],
        failures={i: one for i, one in enumerate(results) if isinstance(one, Failure)},
        metrics={name: _average(values) for name, values in sorted(metrics.items())},
        extra={name: [_first_logged(one, name) for one in results] for name in columns},
        overran=sum(one.overran for one in returned),
    )


def _average(numbers: Sequence[float]) -> float:
    return mean(numbers) if all(map(math.isfinite, numbers)) else math.nan


def _first_logged(result: CallResult, column: str) -> Any:
    if isinstance(result, Failure):
        return None
    return next(iter(result.extra.get(column, [])), None)


def _with_file_name(result: CallResult, function: Callable[..., Any]) -> CallResult:
    """Insert the name of the function's file, which is lost when cloudpickle copies its code."""
    if not isinstance(result, Failure):
        return result
    file = source(function) or "an unknown file"
    return replace(
        result,
        reason=result.reason.replace(_NO_FILE, file),
        details=result.details.replace(_NO_FILE, file),
    )
