"""Reward functions called in parallel with generation, each for a limited time.

As in TRL, a function is called once per member with all its completions. When such a call raises,
crashes or takes too long, the completions are scored one by one, so that only the guilty ones lose
their reward, and the function stays in that mode. One thread with an event loop manages the reward
processes (scorer.py), so that no function can end the run.
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
from estune.rewards.processes.scorer import Refused, Scorer
from estune.rewards.processes.scorer_child import Setup

logger = logging.getLogger(__name__)

_BY_VALUE = "<dynamic-code>"  # cloudpickle's name for the file of a function sent by value
_MATH_VERIFY = "; math-verify's own time limits fail there, so turn them off"


@dataclass(frozen=True)
class RewardLimits:
    """Limits on reward functions.

    workers: reward processes at most; 0 calls all functions in this process.
    timeout: seconds per call.
    memory: GiB per process; None for a quarter of the machine's.
    concurrency: simultaneous calls of an async function.
    """

    workers: int | None = None
    timeout: float = 60.0
    memory: float | None = None
    concurrency: int = 64

    @property
    def scorers(self) -> int:
        """The maximum number of processes: several even on few cores, since many rewards wait."""
        return min(16, max(4, cores())) if self.workers is None else self.workers

    def setup(self) -> Setup:
        """Return what a reward process needs to know of the limits."""
        quarter = psutil.virtual_memory().total // 4
        memory = quarter if self.memory is None else int(self.memory * 2**30)
        return Setup(memory, self.timeout, cores(), self.concurrency)


@dataclass(frozen=True)
class FunctionScores:
    """One function's rewards for one member.

    values: (B,) numbers, NaN for None and where the function failed.
    failures: completion → what went wrong.
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
        self._portable: dict[int, bytes] = {}
        self._in_process: dict[int, InProcess] = {}
        self._singly: set[int] = set()  # functions that are called once per completion
        self._idle: list[Scorer] = []
        self._loop: _Loop | None = None

    def submit(self, index: int, call: Call, *, strict: bool) -> "Future[FunctionScores]":
        """Score a member's completions with function `index`.

        With `strict`, the future raises RewardError if the function fails.
        """
        if self._loop is None:
            self._loop = _Loop(self, self._limits.scorers)
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

    async def _score(self, loop: "_Loop", index: int, call: Call, strict: bool) -> FunctionScores:
        if index not in self._singly:
            whole = (await self._call(loop, index, [call]))[0]
            if isinstance(whole, Returned):
                return FunctionScores(whole.values, {}, whole.metrics, whole.extra, whole.overran)
            if strict:
                raise whole.as_error(self._names[index])
            if call.count == 1:
                return _merged([whole])
            self._call_singly(index, whole)
        return _merged(await self._one_by_one(loop, index, call.singly()))

    def _call_singly(self, index: int, why: Failure) -> None:
        if index not in self._singly:
            said = "reward function %s %s; from now on it is called once per completion"
            logger.warning(said, self._names[index], why.reason)
        self._singly.add(index)

    async def _one_by_one(self, loop: "_Loop", index: int, calls: list[Call]) -> list[CallResult]:
        if is_async(self._functions[index]):
            results = await self._call(loop, index, calls)  # concurrently, in one process
            if any(isinstance(one, Returned) for one in results):
                return results  # otherwise one of them may have ended the process for all
        each = await asyncio.gather(*(self._call(loop, index, [call]) for call in calls))
        return [one for results in each for one in results]

    async def _call(self, loop: "_Loop", index: int, calls: list[Call]) -> list[CallResult]:
        async with loop.placing:
            if index not in self._in_process and index not in self._portable:
                await asyncio.to_thread(prepare, self._functions[index])
                self._place(index)
        if index in self._portable:
            try:
                return await self._call_elsewhere(loop, index, calls)
            except Refused as error:
                self._stay_in_process(index, str(error))
        return await self._in_process[index].call(calls)

    def _place(self, index: int) -> None:
        if self._limits.scorers == 0:
            self._stay_in_process(index)
        elif isinstance(found := portable(self._functions[index]), bytes):
            self._portable[index] = found
        else:
            self._stay_in_process(index, found)

    def _stay_in_process(self, index: int, why: str = "") -> None:
        """Call function `index` in this process from now on; log `why`, if there is a reason."""
        self._portable.pop(index, None)
        if index in self._in_process:
            return
        if why:
            advice = _MATH_VERIFY if "math_verify" in sys.modules else ""
            said = "reward function %s is called in this process, where it can't be killed: %s%s"
            logger.info(said, self._names[index], why, advice)
        limits = self._limits.timeout, self._limits.concurrency
        self._in_process[index] = InProcess(self._functions[index], *limits)

    async def _call_elsewhere(
        self, loop: "_Loop", index: int, calls: list[Call]
    ) -> list[CallResult]:
        async with loop.seats:
            scorer = self._idle.pop() if self._idle else await Scorer.start(self._limits.setup())
            loop.scorers.add(scorer)
            try:
                results = await scorer.call(index, self._portable[index], calls)
                return [_located(one, self._functions[index]) for one in results]
            finally:
                if scorer.alive:
                    self._idle.append(scorer)
                else:
                    loop.scorers.discard(scorer)


class _Loop:
    """An event loop in a thread, and the scorers that it manages; it ends with its pool.

    The thread lives as long as the scorers, because they end with the thread that started them.
    """

    def __init__(self, pool: Pool, seats: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.scorers: set[Scorer] = set()
        self.seats = asyncio.Semaphore(max(1, seats))
        self.placing = asyncio.Lock()
        self._thread = threading.Thread(target=_run, args=[self.loop], daemon=True)
        self._thread.name = "estune-rewards"
        self._thread.start()
        self._wind_up = weakref.finalize(pool, _wind_up_soon, self.loop, self.scorers)

    def end(self) -> None:
        self._wind_up()
        self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


def _wind_up_soon(loop: asyncio.AbstractEventLoop, scorers: set[Scorer]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop ended with the interpreter
        asyncio.run_coroutine_threadsafe(_wind_up(loop, scorers), loop)


async def _wind_up(loop: asyncio.AbstractEventLoop, scorers: set[Scorer]) -> None:
    for scorer in list(scorers):
        await scorer.end()
    scorers.clear()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    loop.call_soon(loop.stop)


def _merged(results: Sequence[CallResult]) -> FunctionScores:
    """Merge the results for single completions.

    Logged metrics are averaged; logged columns hold None for completions that failed.
    """
    returned = [one for one in results if isinstance(one, Returned)]
    logged: dict[str, list[float]] = defaultdict(list)
    for one in returned:
        for name, value in one.metrics.items():
            logged[name].append(value)
    columns = sorted({name for one in returned for name in one.extra})
    return FunctionScores(
        values=[one.values[0] if isinstance(one, Returned) else math.nan for one in results],
        failures={i: one for i, one in enumerate(results) if isinstance(one, Failure)},
        metrics={name: _average(values) for name, values in sorted(logged.items())},
        extra={name: [_first(one, name) for one in results] for name in columns},
        overran=sum(one.overran for one in returned),
    )


def _average(numbers: Sequence[float]) -> float:
    return mean(numbers) if all(map(math.isfinite, numbers)) else math.nan


def _first(result: CallResult, column: str) -> Any:
    return next(iter(result.extra.get(column, [])), None) if isinstance(result, Returned) else None


def _located(result: CallResult, function: Callable[..., Any]) -> CallResult:
    """Put back the name of the function's file, which is lost when it is sent by value."""
    if not isinstance(result, Failure):
        return result
    file = source(function) or "an unknown file"
    return replace(
        result,
        reason=result.reason.replace(_BY_VALUE, file),
        details=result.details.replace(_BY_VALUE, file),
    )
