"""Call a reward function, and return its numbers or one line about what went wrong.

This code runs in reward processes and, for functions that keep state, in the trainer. It imports
little, because every reward process imports it at its start.
"""

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from estune.common.visible import one_line
from estune.errors import RewardError, clean
from estune.rewards.marks import Grades, source
from estune.rewards.processes.patience import done_within
from estune.rewards.returned_values import NotRewards, numbers, shown

_RULE = "it must return one number (or None) per completion"
_ALARM_ADVICE = (
    "it sets an alarm signal, which only works in a main thread, but it is called in another thread"
    " because it keeps state; write it as a plain function, or turn the time limit off"
    " (math-verify: parsing_timeout=None, timeout_seconds=None)"
)


@dataclass(frozen=True)
class Call:
    """The arguments of one call.

    columns: name → list with one value for each of the `count` completions.
    shared: name → argument that is the same for all completions.
    loggers: which of `log_extra` and `log_metric` the function takes.
    seconds: the longest time that the call can take, if the function limits its own time.
    """

    columns: dict[str, list[Any]]
    shared: dict[str, Any]
    loggers: tuple[str, ...]
    count: int
    seconds: float | None = None

    def per_completion(self) -> "list[Call]":
        """Return one call for each completion."""
        return [
            replace(
                self, columns={name: [values[i]] for name, values in self.columns.items()}, count=1
            )
            for i in range(self.count)
        ]


@dataclass(frozen=True)
class Returned:
    """What a function returned and logged.

    values: one number per completion, NaN for None.
    metrics: what the function logged through `log_metric`.
    extra: what it logged through `log_extra`.
    overran: how many completions exceeded the function's own time limit.
    """

    values: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    overran: int = 0


@dataclass(frozen=True)
class Failure:
    """What went wrong in a call.

    reason: the predicate of a sentence about the function, such as "raised ValueError: …".
    details: the traceback, if there is one.
    """

    reason: str
    details: str = ""
    timed_out: bool = False

    def as_error(self, function: str) -> RewardError:
        """Return this failure of `function` as the error that ends the run."""
        return RewardError(f"reward function {function} {self.reason}; fix it and resume the run")


CallResult = Returned | Failure


@dataclass
class _Logged:
    """What a function logs while it runs."""

    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


def seconds_for(calls: Sequence[Call], timeout: float, concurrency: int) -> float:
    """Return the seconds that `calls` may take together if `concurrency` of them run at a time.

    Each call may take `timeout` seconds, or longer if the function limits its own time.
    """
    longest = max(max(timeout, call.seconds or 0) for call in calls)
    return longest * math.ceil(len(calls) / concurrency)


def call_function(
    function: Callable[..., Any],
    calls: Sequence[Call],
    loop: asyncio.AbstractEventLoop,
    concurrency: int,
    timeout: float,
) -> list[CallResult]:
    """Make `calls` one after another and return their results in the same order.

    Calls of an async function run in `loop`, at most `concurrency` at a time. Each of them may take
    `timeout` seconds.
    """
    logs = [_Logged() for _ in calls]
    results = [_call(function, call, logged) for call, logged in zip(calls, logs, strict=True)]
    if any(map(inspect.isawaitable, results)):
        results = loop.run_until_complete(_await_all(function, results, concurrency, timeout))
    return [_checked(*each) for each in zip(results, calls, logs, strict=True)]


def _call(function: Callable[..., Any], call: Call, logged: _Logged) -> Any:
    """Return what the function returned, which may be awaitable, or a Failure."""

    def log_extra(column: str, values: Sequence[Any]) -> None:
        logged.extra[str(column)] = list(values)

    def log_metric(name: str, value: float) -> None:
        logged.metrics[str(name)] = float(value)

    loggers = {"log_extra": log_extra, "log_metric": log_metric}
    requested = {name: loggers[name] for name in call.loggers}
    try:
        return function(**call.columns, **call.shared, **requested)
    except BaseException as error:  # includes SystemExit; Ctrl-C is not raised in this thread
        return failure_of(function, error)


async def _await_all(
    function: Callable[..., Any], results: Sequence[Any], concurrency: int, timeout: float
) -> list[Any]:
    slots = asyncio.Semaphore(concurrency)

    async def finish(result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        async with slots:
            return await _await_within(function, result, timeout)

    return await asyncio.gather(*map(finish, results))


async def _await_within(
    function: Callable[..., Any], result: Awaitable[Any], timeout: float
) -> Any:
    task = asyncio.ensure_future(result)
    if not await done_within(task, timeout):
        task.cancel()
        return timed_out(timeout)
    try:
        return task.result()
    except BaseException as error:
        return failure_of(function, error)


def timed_out(timeout: float) -> Failure:
    """Return the failure of a call that did not return within `timeout` seconds."""
    return Failure(f"did not return within {timeout:g} s (reward_timeout)", timed_out=True)


def failure_of(function: Callable[..., Any], error: BaseException) -> Failure:
    """Describe what `function` raised, and the last line of its own file in the traceback."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code.co_filename, number) for frame, number in frames]
    own_lines = [(file, number) for file, number in lines if file == source(function)]
    file, number = (own_lines or lines or [("an unknown file", 0)])[-1]
    if _needs_alarm(error):
        description = f"{clean(type(error).__name__)}: {_ALARM_ADVICE}"
    else:
        description = described(error)
    return Failure(f"raised {description} at {clean(file)}:{number}", _traceback(error))


def described(error: BaseException) -> str:
    """Return the type and the message of an exception as one line."""
    return f"{clean(type(error).__name__)}: {one_line(error, 300)}"


def _traceback(error: BaseException) -> str:
    try:
        return clean("".join(traceback.format_exception(error)))
    except BaseException as another:  # raised by the exception's own __str__
        return described(another)


def _needs_alarm(error: BaseException) -> bool:
    """Return whether a function tried to set an alarm signal in a thread."""
    message = one_line(error, 300)
    from_python = "signal only works in main thread" in message
    from_math_verify = "usage of signal.alarm" in message
    return isinstance(error, ValueError) and (from_python or from_math_verify)


def _checked(result: Any, call: Call, logged: _Logged) -> CallResult:
    """Return `result` as numbers, or as a Failure if it is not one number per completion."""
    if isinstance(result, Failure):
        return result
    try:
        overran = result.overran if isinstance(result, Grades) else 0
        values = numbers(result, call.count)
        return Returned(values, logged.metrics, logged.extra, overran)
    except NotRewards as error:
        return Failure(f"returned {error}; {_RULE}")
    except BaseException as error:  # raised by a method of the returned object
        problem = f"returned {shown(result)}, which cannot be read ({described(error)})"
        return Failure(f"{problem}; {_RULE}", _traceback(error))
