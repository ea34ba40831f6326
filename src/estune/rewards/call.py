"""One call of one reward function: the numbers that it gave, or one line about what went wrong.

The same code runs in a scorer's process and, for functions that keep state here, in the trainer's. Imports little, since
every scorer starts with it.
"""

import asyncio
import functools
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Call:
    """What a function is called with: lists with one value for each of `count` completions, and what all of them share."""

    columns: Columns
    shared: dict[str, Any]
    loggers: tuple[str, ...]  # which of log_extra and log_metric it takes
    count: int

    def singly(self) -> "list[Call]":
        """One call a completion."""
        return [Call({name: [values[i]] for name, values in self.columns.items()}, self.shared, self.loggers, 1) for i in range(self.count)]


@dataclass(frozen=True)
class Returned:
    """What a call gave: one number a completion, NaN for None, and what the function logged."""

    values: list[float]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What went wrong with a call: `reason` follows the function's name in a message."""

    reason: str
    details: str = ""  # a traceback
    timed_out: bool = False


Answer = Returned | Failure

_NO_ALARM = (
    "it sets an alarm signal, which works in a main thread alone, but it is called in a thread, since it carries state along; "
    "write it as a plain function, or turn the time limit off (math-verify: parsing_timeout=None, timeout_seconds=None)"
)


def answer(
    function: Callable[..., Any], calls: Sequence[Call], loop: asyncio.AbstractEventLoop, limit: int, timeout: float
) -> list[Answer]:
    """Make `calls`, one after the other; where the function is async at most `limit` at a time, each for `timeout` seconds at most."""
    begun = [_begin(function, call) for call in calls]
    if any(inspect.isawaitable(result) for result, _ in begun):
        begun = loop.run_until_complete(_awaited(function, begun, limit, timeout))
    return [_checked(result, call, logged) for (result, logged), call in zip(begun, calls, strict=True)]


def _begin(function: Callable[..., Any], call: Call) -> tuple[Any, Returned]:
    """What the function returned, a Failure, or something to be awaited; and what it logged or will log."""
    logged = Returned([])
    loggers = {
        "log_extra": lambda column, values: logged.extra.__setitem__(column, list(values)),
        "log_metric": lambda name, value: logged.metrics.__setitem__(name, float(value)),
    }
    try:
        return function(**call.columns, **call.shared, **{name: loggers[name] for name in call.loggers}), logged
    except BaseException as error:  # sys.exit and KeyboardInterrupt too: a real Ctrl-C does not come here
        return failure_of(function, error), logged


async def _awaited(
    function: Callable[..., Any], begun: list[tuple[Any, Returned]], limit: int, timeout: float
) -> list[tuple[Any, Returned]]:
    seats = asyncio.Semaphore(limit)

    async def finish(result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        async with seats:
            return await _within(function, result, timeout)

    results = await asyncio.gather(*(finish(result) for result, _ in begun))
    return [(result, logged) for result, (_, logged) in zip(results, begun, strict=True)]


async def _within(function: Callable[..., Any], result: Awaitable[Any], timeout: float) -> Any:
    task = asyncio.ensure_future(result)
    done, _ = await asyncio.wait([task], timeout=timeout)
    if not done:
        task.cancel()
        return timed_out(timeout)
    try:
        return task.result()
    except BaseException as error:
        return failure_of(function, error)


def timed_out(timeout: float) -> Failure:
    """The failure of a call that outlasted `timeout` seconds."""
    return Failure(f"did not return within {timeout:g} s (reward_timeout)", timed_out=True)


def failure_of(function: Callable[..., Any], error: BaseException) -> Failure:
    """What `error`, which `function` raised, says, and in which of the user's own lines."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in lines if file == source(function)]
    file, number = (own or lines)[-1]  # the user's own line, rather than one in a library that it called
    said = _NO_ALARM if _needs_alarm(error) else " ".join(str(error).split())[:300]
    return Failure(f"raised {type(error).__name__}: {said} at {file}:{number}", "".join(traceback.format_exception(error)))


def _needs_alarm(error: BaseException) -> bool:
    """Whether a function tried to set an alarm signal in a thread: Python's words for it, and math-verify's."""
    said = str(error)
    return isinstance(error, ValueError) and ("signal only works in main thread" in said or "usage of signal.alarm" in said)


def source(function: Callable[..., Any]) -> str | None:
    """The file that a reward function was written in."""
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return code.co_filename if code else None


def _checked(result: Any, call: Call, logged: Returned) -> Answer:
    if isinstance(result, Failure):
        return result
    try:
        return Returned(_numbers(result, call.count), logged.metrics, logged.extra)
    except ValueError as error:
        return Failure(f"returned {error}; it must return one number (or None) a completion")
    except Exception as error:  # an object that fails when it is read
        return Failure(f"returned a {type(result).__name__} that cannot be read ({type(error).__name__}: {error})")


def _numbers(values: Any, count: int) -> list[float]:
    """The returned values as numbers, NaN for None; ValueError says what was returned instead."""
    if not _is_list(values):
        raise ValueError(_shown(values))
    if len(values) != count:
        raise ValueError(f"{len(values)} rewards for {count} completion{'s' * (count != 1)}")
    return [_number(i, value) for i, value in enumerate(values)]  # by position: a table's column may have an index of its own


def _is_list(values: Any) -> bool:
    single = isinstance(values, (str, bytes, dict)) or getattr(values, "ndim", 1) == 0  # ndim: of an array or a tensor
    return not single and hasattr(values, "__len__") and hasattr(values, "__getitem__")


def _number(index: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except Exception:  # a tensor of several numbers raises RuntimeError, 10**400 OverflowError
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{_shown(value)} for completion {index}")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
