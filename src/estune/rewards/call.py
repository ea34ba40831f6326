"""One call of one reward function: the numbers that it gave, or one line about what went wrong.

The same code runs in a scorer's process and, for functions that keep state here, in the trainer's. Imports little, since
every scorer starts with it.
"""

import asyncio
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from estune.common.visible import one_line
from estune.errors import clean
from estune.rewards.marks import Grades, source
from estune.rewards.processes.patience import done_within

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Call:
    """What a function is called with: lists with one value for each of `count` completions, and what all of them share."""

    columns: Columns
    shared: dict[str, Any]
    loggers: tuple[str, ...]  # which of log_extra and log_metric it takes
    count: int
    seconds: float | None = (
        None  # after which a function that bounds itself is done, whatever `reward_timeout` says
    )

    def singly(self) -> "list[Call]":
        """One call a completion."""
        return [
            replace(
                self, columns={name: [values[i]] for name, values in self.columns.items()}, count=1
            )
            for i in range(self.count)
        ]

    def allowed(self, timeout: float) -> float:
        """Seconds that the call may take where `reward_timeout` is `timeout`."""
        return max(timeout, self.seconds or 0)


@dataclass(frozen=True)
class Returned:
    """What a call gave: one number a completion, NaN for None, and what the function logged.

    overran: completions at which the function met a time limit of its own, and gave its lowest grade.
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


Answer = Returned | Failure

_NO_ALARM = (
    "it sets an alarm signal, which works in a main thread alone, but it is called in a thread, since it carries state along; "
    "write it as a plain function, or turn the time limit off (math-verify: parsing_timeout=None, timeout_seconds=None)"
)


def answer(
    function: Callable[..., Any],
    calls: Sequence[Call],
    loop: asyncio.AbstractEventLoop,
    limit: int,
    timeout: float,
) -> list[Answer]:
    """Make `calls`, one after the other; where the function is async at most `limit` at a time, each for `timeout` seconds at most."""
    begun = [_begin(function, call) for call in calls]
    if any(inspect.isawaitable(result) for result, _ in begun):
        begun = loop.run_until_complete(_awaited(function, begun, limit, timeout))
    return [
        _checked(result, call, logged) for (result, logged), call in zip(begun, calls, strict=True)
    ]


def _begin(function: Callable[..., Any], call: Call) -> tuple[Any, Returned]:
    """What the function returned, a Failure, or something to be awaited; and what it logged or will log."""
    logged = Returned([])
    loggers = {
        "log_extra": lambda column, values: logged.extra.__setitem__(str(column), list(values)),
        "log_metric": lambda name, value: logged.metrics.__setitem__(str(name), float(value)),
    }
    try:
        return function(
            **call.columns, **call.shared, **{name: loggers[name] for name in call.loggers}
        ), logged
    except (
        BaseException
    ) as error:  # sys.exit and KeyboardInterrupt too: a real Ctrl-C does not come here
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
    if not await done_within(task, timeout):
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
    lines = [
        (frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [(file, line) for file, line in lines if file == source(function)]
    file, number = (own or lines or [("an unknown file", 0)])[
        -1
    ]  # the user's own line, rather than one in a library that it called
    said = f"{clean(type(error).__name__)}: {_NO_ALARM}" if _needs_alarm(error) else _said(error)
    return Failure(f"raised {said} at {clean(file)}:{number}", _details(error))


def _said(error: BaseException) -> str:
    return f"{clean(type(error).__name__)}: {one_line(error, 300)}"


def _details(error: BaseException) -> str:
    try:
        return clean("".join(traceback.format_exception(error)))
    except (
        BaseException
    ) as another:  # the text of an exception is made by its own code, which can fail
        return _said(another)


def _needs_alarm(error: BaseException) -> bool:
    """Whether a function tried to set an alarm signal in a thread: Python's words for it, and math-verify's."""
    if not isinstance(error, ValueError):
        return False
    said = one_line(error, 300)
    return "signal only works in main thread" in said or "usage of signal.alarm" in said


def _checked(result: Any, call: Call, logged: Returned) -> Answer:
    if isinstance(result, Failure):
        return result
    wanted = "it must return one number (or None) a completion"
    try:
        overran = result.overran if isinstance(result, Grades) else 0
        return Returned(_numbers(result, call.count), logged.metrics, logged.extra, overran)
    except _NotRewards as error:
        return Failure(f"returned {error}; {wanted}")
    except (
        BaseException
    ) as error:  # the value's own code, which runs when it is read, can raise anything
        return Failure(
            f"returned {_shown(result)}, which cannot be read ({_said(error)}); {wanted}",
            _details(error),
        )


class _NotRewards(Exception):
    """Says what was returned instead of rewards."""


def _numbers(values: Any, count: int) -> list[float]:
    """The returned values as numbers, NaN for None, by their position; raises _NotRewards."""
    if not is_list(values):
        raise _NotRewards(_shown(values))
    if len(values) != count:
        raise _NotRewards(f"{len(values)} rewards for {count} completion{'s' * (count != 1)}")
    listed = list(islice(_by_position(values), count))
    if len(listed) != count:
        raise _NotRewards(
            f"a {type(values).__name__} that says that it has {count} rewards and has {len(listed)}"
        )
    return [_number(i, value) for i, value in enumerate(listed)]


def is_list(values: Any) -> bool:
    """Whether `values` is a list, an array or anything else with one value after the other."""
    single = (
        isinstance(values, (str, bytes, Mapping)) or getattr(values, "ndim", 1) == 0
    )  # ndim: of an array or a tensor
    return not single and hasattr(values, "__len__") and hasattr(values, "__getitem__")


def _by_position(values: Any) -> Any:
    """A pandas object is indexed by its labels, and a table iterated by its columns; its array is neither."""
    return iter(values.to_numpy() if hasattr(values, "to_numpy") else values)


def _number(index: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(_single(value))
    except Exception:  # a tensor of several numbers raises RuntimeError, 10**400 OverflowError
        number = math.nan
    if not math.isfinite(number):
        raise _NotRewards(f"{_shown(value)} for completion {index}")
    return number


def _single(value: Any) -> Any:
    """The element of an array of one element, without its gradient; any other value as it is."""
    value = value.detach() if hasattr(value, "detach") else value
    while getattr(value, "ndim", 0) and len(value) == 1:
        value = value[0]
    return value


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 60)
    except BaseException as error:  # an int of too many digits, or a __repr__ of the user's
        return f"a {clean(type(value).__name__)} without a text ({clean(type(error).__name__)})"
