"""One call of one reward function, and what came of it: numbers, or one line about what went wrong.

The same code runs in a reward process and, for functions that keep state, in the trainer. It
imports little, because every reward process starts with it.
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

_WANTED = "it must return one number (or None) per completion"
_NO_ALARM = (
    "it sets an alarm signal, which only works in a main thread, but it is called in another thread"
    " because it keeps state; write it as a plain function, or turn the time limit off"
    " (math-verify: parsing_timeout=None, timeout_seconds=None)"
)


@dataclass(frozen=True)
class Call:
    """The arguments of one call.

    columns: lists with one value for each of the `count` completions.
    shared: arguments that all completions share.
    loggers: which of log_extra and log_metric the function takes.
    seconds: the longest time that the call can take, if the function limits itself.
    """

    columns: dict[str, list[Any]]
    shared: dict[str, Any]
    loggers: tuple[str, ...]
    count: int
    seconds: float | None = None

    def singly(self) -> "list[Call]":
        """Return one call per completion."""
        return [
            replace(
                self, columns={name: [values[i]] for name, values in self.columns.items()}, count=1
            )
            for i in range(self.count)
        ]


@dataclass(frozen=True)
class Returned:
    """One number per completion, NaN for None, and what the function logged.

    overran: how many completions exceeded the function's own time limit.
    """

    values: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    overran: int = 0


@dataclass(frozen=True)
class Failure:
    """What went wrong with a call: `reason` follows the function's name in a message."""

    reason: str
    details: str = ""  # a traceback
    timed_out: bool = False

    def as_error(self, function: str) -> RewardError:
        """Return this failure of `function` as the error that ends the run."""
        return RewardError(f"reward function {function} {self.reason}; fix it and resume the run")


CallResult = Returned | Failure


def seconds_for(calls: Sequence[Call], timeout: float, concurrency: int) -> float:
    """Return the seconds that `calls` may take together, `concurrency` at a time.

    `timeout` is `reward_timeout`, which a function that limits itself may exceed.
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
    """Make `calls` in order.

    Calls of an async function run in `loop`, `concurrency` at a time and each for at most
    `timeout` seconds.
    """
    logs = [Returned([]) for _ in calls]
    results = [_call(function, call, log) for call, log in zip(calls, logs, strict=True)]
    if any(map(inspect.isawaitable, results)):
        results = loop.run_until_complete(_awaited(function, results, concurrency, timeout))
    return [_checked(*each) for each in zip(results, calls, logs, strict=True)]


def _call(function: Callable[..., Any], call: Call, log: Returned) -> Any:
    """Return what the function returned, which may be awaitable, or a Failure."""

    def log_extra(column: str, values: Sequence[Any]) -> None:
        log.extra[str(column)] = list(values)

    def log_metric(name: str, value: float) -> None:
        log.metrics[str(name)] = float(value)

    loggers = {"log_extra": log_extra, "log_metric": log_metric}
    taken = {name: loggers[name] for name in call.loggers}
    try:
        return function(**call.columns, **call.shared, **taken)
    except BaseException as error:  # sys.exit too; a real Ctrl-C does not reach this thread
        return failure_of(function, error)


async def _awaited(
    function: Callable[..., Any], results: Sequence[Any], concurrency: int, timeout: float
) -> list[Any]:
    seats = asyncio.Semaphore(concurrency)

    async def finish(result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        async with seats:
            return await _within(function, result, timeout)

    return await asyncio.gather(*map(finish, results))


async def _within(function: Callable[..., Any], result: Awaitable[Any], timeout: float) -> Any:
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
    """Describe what `function` raised, and the line of its source file that raised it."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code.co_filename, number) for frame, number in frames]
    own = [(file, number) for file, number in lines if file == source(function)]
    file, number = (own or lines or [("an unknown file", 0)])[-1]
    said = (
        f"{clean(type(error).__name__)}: {_NO_ALARM}" if _needs_alarm(error) else described(error)
    )
    return Failure(f"raised {said} at {clean(file)}:{number}", _traceback(error))


def described(error: BaseException) -> str:
    """Return an exception of the user's code as one line: its type and its message."""
    return f"{clean(type(error).__name__)}: {one_line(error, 300)}"


def _traceback(error: BaseException) -> str:
    try:
        return clean("".join(traceback.format_exception(error)))
    except BaseException as another:  # raised by the exception's own __str__
        return described(another)


def _needs_alarm(error: BaseException) -> bool:
    """Return whether a function tried to set an alarm signal in a thread."""
    said = one_line(error, 300)  # the message of Python, or of math-verify
    tried = "signal only works in main thread" in said or "usage of signal.alarm" in said
    return tried and isinstance(error, ValueError)


def _checked(result: Any, call: Call, log: Returned) -> CallResult:
    if isinstance(result, Failure):
        return result
    try:
        overran = result.overran if isinstance(result, Grades) else 0
        return replace(log, values=numbers(result, call.count), overran=overran)
    except NotRewards as error:
        return Failure(f"returned {error}; {_WANTED}")
    except BaseException as error:  # raised by the value's own code
        said = f"returned {shown(result)}, which cannot be read ({described(error)})"
        return Failure(f"{said}; {_WANTED}", _traceback(error))
