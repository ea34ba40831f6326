"""Reward functions called beside the engines: in parallel, each for a limited time, and none able to take the run along.

A function is called once a member with all its completions, as in TRL. When such a call raises, dies or outlasts its
time, the completions are scored one by one, so that only the guilty ones are lost, and the function stays in that mode.
One thread with an event loop sees to the scorers, which are processes of their own (process.py).
"""

import asyncio
import contextlib
import logging
import math
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import psutil

from estune.common.moments import mean
from estune.common.resources import cores
from estune.errors import RewardError
from estune.rewards.call import Answer, Call, Failure, Returned
from estune.rewards.marks import is_async, prepare, source
from estune.rewards.processes.in_process import InProcess
from estune.rewards.processes.portable import portable
from estune.rewards.processes.scorer import Refused, Scorer
from estune.rewards.processes.scorer_child import Setup

logger = logging.getLogger(__name__)
T = TypeVar("T")

_BY_VALUE = "<dynamic-code>"  # what cloudpickle has for a file


@dataclass(frozen=True)
class RewardLimits:
    """What reward functions may take. workers: scorers, 0 to call all functions in this process; timeout: seconds a call;
    memory: GiB a scorer, None for a quarter of the machine's; concurrency: calls of an async function at a time."""

    workers: int | None = None
    timeout: float = 60.0
    memory: float | None = None
    concurrency: int = 64

    @property
    def scorers(self) -> int:
        """Processes at most: several even on few cores, since many rewards wait for something."""
        return min(16, max(4, cores())) if self.workers is None else self.workers


@dataclass(frozen=True)
class FunctionScores:
    """One function's rewards for one member: (B,) numbers, NaN for None and where it failed; what it failed at, and logged."""

    values: list[float]
    failures: dict[int, Failure] = field(default_factory=dict)  # by completion
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    overran: int = 0  # completions at which the function met a time limit of its own


class Pool:
    """Calls `functions`, known by their index, under `limits`."""

    def __init__(
        self, functions: Sequence[Callable[..., Any]], names: Sequence[str], limits: RewardLimits
    ) -> None:
        self._functions, self._names, self._limits = functions, names, limits
        self._portable: dict[int, bytes] = {}
        self._here: dict[int, InProcess] = {}
        self._singly: set[int] = set()  # functions that are called once a completion
        self._scorers: set[Scorer] = set()
        self._idle: list[Scorer] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, index: int, call: Call, *, strict: bool) -> "Future[FunctionScores]":
        """Have a member's completions scored by function `index`; `strict`: a failure is a RewardError at once."""
        self._start()
        return self._soon(self._score(index, call, strict))

    def close(self) -> None:
        """End all scorers; another call starts them anew."""
        if self._loop is not None:
            self._forgotten()
            self._thread.join()
            self._loop = None
            self._idle.clear()
            for here in self._here.values():
                here.end()
            self._here.clear()

    def _soon(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _start(self) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._seats = asyncio.Semaphore(max(1, self._limits.scorers))
            self._placing = asyncio.Lock()
            # A thread that lives as long as the scorers do: they end with the thread that started them.
            self._thread = threading.Thread(
                target=_run, args=[self._loop], name="estune-rewards", daemon=True
            )
            self._thread.start()
            self._forgotten = weakref.finalize(self, _wind_up_soon, self._loop, self._scorers)

    async def _score(self, index: int, call: Call, strict: bool) -> FunctionScores:
        if index not in self._singly:
            whole = (await self._ask(index, [call]))[0]
            if isinstance(whole, Returned):
                return FunctionScores(whole.values, {}, whole.metrics, whole.extra, whole.overran)
            if strict:
                raise RewardError(
                    f"reward function {self._names[index]} {whole.reason}; mend it and resume the run"
                )
            if call.count == 1:
                return _merged([whole])
            self._call_singly(index, whole)
        return _merged(await self._one_by_one(index, call.singly()))

    def _call_singly(self, index: int, why: Failure) -> None:
        if index not in self._singly:
            logger.warning(
                "reward function %s %s; from now on it is called once a completion",
                self._names[index],
                why.reason,
            )
        self._singly.add(index)

    async def _one_by_one(self, index: int, calls: list[Call]) -> list[Answer]:
        if is_async(self._functions[index]):  # then many wait at a time, unless one takes all down
            answers = await self._ask(index, calls)
            if any(isinstance(one, Returned) for one in answers):
                return answers
        return [
            one
            for answers in await asyncio.gather(*(self._ask(index, [call]) for call in calls))
            for one in answers
        ]

    async def _ask(self, index: int, calls: list[Call]) -> list[Answer]:
        async with self._placing:
            if index not in self._here and index not in self._portable:
                await asyncio.to_thread(prepare, self._functions[index])
                self._place(index)
        if index in self._portable:
            try:
                return await self._elsewhere(index, calls)
            except Refused as error:
                self._stay(index, str(error))
        return await self._here[index].ask(calls)

    def _place(self, index: int) -> None:
        if self._limits.scorers == 0:
            self._here[index] = InProcess(
                self._functions[index],
                timeout=self._limits.timeout,
                concurrency=self._limits.concurrency,
            )
        elif isinstance(found := portable(self._functions[index]), bytes):
            self._portable[index] = found
        else:
            self._stay(index, found)

    def _stay(self, index: int, why: str) -> None:
        if index not in self._here:
            limits = (
                "; math-verify's own time limits fail there, so turn them off"
                if "math_verify" in sys.modules
                else ""
            )
            logger.info(
                "reward function %s is called in this process, where it can't be killed: %s%s",
                self._names[index],
                why,
                limits,
            )
            self._here[index] = InProcess(
                self._functions[index],
                timeout=self._limits.timeout,
                concurrency=self._limits.concurrency,
            )
        self._portable.pop(index, None)

    async def _elsewhere(self, index: int, calls: list[Call]) -> list[Answer]:
        async with self._seats:
            scorer = self._idle.pop() if self._idle else await Scorer.start(self._setup())
            self._scorers.add(scorer)
            try:
                answers = await scorer.ask(index, self._portable[index], calls)
                return [_located(one, self._functions[index]) for one in answers]
            finally:
                if scorer.alive:
                    self._idle.append(scorer)
                else:
                    self._scorers.discard(scorer)

    def _setup(self) -> Setup:
        limits = self._limits
        memory = (
            psutil.virtual_memory().total // 4
            if limits.memory is None
            else int(limits.memory * 2**30)
        )
        return Setup(memory, limits.timeout, cores(), limits.concurrency)


def _merged(answers: Sequence[Answer]) -> FunctionScores:
    """The answers about single completions as one; what was logged is averaged, and listed with None for what failed."""
    values = [one.values[0] if isinstance(one, Returned) else math.nan for one in answers]
    failures = {i: one for i, one in enumerate(answers) if isinstance(one, Failure)}
    returned = [one for one in answers if isinstance(one, Returned)]
    names = sorted({name for one in returned for name in one.metrics})
    logged = {
        name: [one.metrics[name] for one in returned if name in one.metrics] for name in names
    }
    columns = sorted({name for one in returned for name in one.extra})
    extra = {name: [_first(one, name) for one in answers] for name in columns}
    overran = sum(one.overran for one in returned)
    return FunctionScores(
        values, failures, {name: _average(found) for name, found in logged.items()}, extra, overran
    )


def _average(numbers: Sequence[float]) -> float:
    return mean(numbers) if all(map(math.isfinite, numbers)) else math.nan


def _first(answer: Answer, column: str) -> Any:
    return next(iter(answer.extra.get(column, [])), None) if isinstance(answer, Returned) else None


def _located(answer: Answer, function: Callable[..., Any]) -> Answer:
    """`answer` with the file in which a function was written, which is lost when it is sent by value."""
    if not isinstance(answer, Failure):
        return answer
    place = source(function) or "an unknown file"
    return replace(
        answer,
        reason=answer.reason.replace(_BY_VALUE, place),
        details=answer.details.replace(_BY_VALUE, place),
    )


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


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()
