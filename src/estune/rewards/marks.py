"""Mark reward functions that limit their own time, or that need a preparation.

`reward_timeout` guards against reward functions that hang. A built-in grader guards itself: it
stops grading a completion that takes too long, gives it the lowest grade, and counts it. Such a
function is marked with the longest time that a call can take, so that its calls are not ended at
`reward_timeout`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Grades(list[float]):
    """One reward per completion.

    overran: how many completions exceeded the grader's own time limit.
    """

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


def bounds_itself(max_seconds: Callable[..., float]) -> Callable[[_Function], _Function]:
    """Mark a reward function whose calls take at most `max_seconds(**columns)` seconds."""
    return _mark("max_seconds", max_seconds)


def prepared_by(prepare: Callable[[], None]) -> Callable[[_Function], _Function]:
    """Mark a reward function for which `prepare()` must be called once per run.

    The trainer calls it before the first call of the function. What it stores in environment
    variables reaches the reward processes, which start later.
    """
    return _mark("estune_prepare", prepare)


def own_limit(function: Callable[..., Any], columns: dict[str, Any]) -> float | None:
    """Return the longest time that a call with `columns` can take, or None without a mark."""
    for layer in layers(function):
        if isinstance(layer, functools.partial):
            columns = columns | layer.keywords
        if max_seconds := getattr(layer, "max_seconds", None):
            try:
                return float(max_seconds(**columns))
            except Exception:  # wrong columns: the call itself will report them
                return None
    return None


def prepare(function: Callable[..., Any]) -> None:
    """Run the preparation that `prepared_by` attached to `function` or to a function inside it."""
    for layer in layers(function):
        if marked := getattr(layer, "estune_prepare", None):
            marked()
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
    """Yield `function`, then the function that it wraps, then the one that this wraps, and so on.

    The wrappers are partials, decorated functions and rewards of one task (TaskReward).
    """
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
