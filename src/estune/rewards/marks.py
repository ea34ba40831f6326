"""Marks on a reward function: the longest time of its calls, and what must be prepared first.

`reward_timeout` guards against reward functions that hang. A built-in grader instead ends each
completion that takes too long, gives it the lowest grade, and counts it. Such a function is marked
with the longest time that a call can take, so that `reward_timeout` does not cut it short.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Grades(list[float]):
    """Rewards, one per completion; `overran` counts those that exceeded the grader's own limit."""

    def __init__(self, grades: Iterable[float], overran: int = 0) -> None:
        super().__init__(grades)
        self.overran = overran


def overran_line(count: int) -> str:
    """Return the line that reports `count` completions that exceeded a grader's time limit."""
    plural = "s" * (count > 1)
    return (
        f"{count} completion{plural} exceeded the grader's time limit"
        " and got its lowest grade (es/reward_timeouts)"
    )


def bounds_itself(most_seconds: Callable[..., float]) -> Callable[[_Function], _Function]:
    """Mark a reward function whose calls end within `most_seconds(**columns)`."""
    return _mark("most_seconds", most_seconds)


def prepared_by(prepare: Callable[[], None]) -> Callable[[_Function], _Function]:
    """Mark a reward function that needs `prepare` once per run.

    The trainer calls it before it starts a process for the function. An environment variable
    carries the result to that process.
    """
    return _mark("estune_prepare", prepare)


def own_limit(function: Callable[..., Any], columns: dict[str, Any]) -> float | None:
    """Return the seconds within which a call with `columns` ends, or None if there is no mark."""
    for layer in layers(function):
        if isinstance(layer, functools.partial):
            columns = columns | layer.keywords
        if most_seconds := getattr(layer, "most_seconds", None):
            try:
                return float(most_seconds(**columns))
            except Exception:  # the call itself will refuse these columns by name
                return None
    return None


def prepare(function: Callable[..., Any]) -> None:
    """Prepare `function`, if it or a function inside it is marked with `prepared_by`."""
    for layer in layers(function):
        if work := getattr(layer, "estune_prepare", None):
            work()
            return


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether `function`, or one inside it, is a coroutine function."""
    return any(
        inspect.iscoroutinefunction(layer) or inspect.iscoroutinefunction(type(layer).__call__)
        for layer in layers(function)
    )


def source(function: Callable[..., Any]) -> str | None:
    """Return the file in which a reward function was written."""
    *_, innermost = layers(function)
    code = getattr(innermost, "__code__", None)
    code = code or getattr(type(innermost).__call__, "__code__", None)
    return code.co_filename if code else None


def layers(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield `function`, then the function inside a partial, a decorator or a task's reward."""
    layer: Any = function
    while callable(layer):
        yield layer
        names = ["func"] if isinstance(layer, functools.partial) else ["function", "__wrapped__"]
        layer = next(filter(None, (getattr(layer, name, None) for name in names)), None)


def _mark(name: str, value: Callable[..., Any]) -> Callable[[_Function], _Function]:
    def mark(function: _Function) -> _Function:
        setattr(function, name, value)
        return function

    return mark
