"""Graders that bound their own work: what hangs gets the lowest grade, and nobody else pays for it.

`reward_timeout` guards against reward functions that hang. A built-in grader ends what hangs by
itself, answer by answer; it says how long a call may take, and how many answers met its limit.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Grades(list[float]):
    """RewardFunctions, one per completion; `overran` counts those that met the grader's own time limit."""

    def __init__(self, grades: Iterable[float], overran: int = 0) -> None:
        super().__init__(grades)
        self.overran = overran


def overran_line(count: int) -> str:
    """A line about `count` answers that met a grader's time limit."""
    return f"{count} answer{'s' * (count > 1)} met the grader's time limit and got its lowest grade (es/reward_timeouts)"


def bounds_itself(most_seconds: Callable[..., float]) -> Callable[[_Function], _Function]:
    """Mark a reward function whose calls are over after `most_seconds(**columns)`."""

    def mark(function: _Function) -> _Function:
        function.most_seconds = most_seconds  # type: ignore[attr-defined]
        return function

    return mark


def own_limit(function: Any, columns: dict[str, Any]) -> float | None:
    """Seconds after which a call of `function` with `columns` is over, if it bounds itself."""
    if isinstance(function, functools.partial):
        return own_limit(function.func, columns | function.keywords)
    if (inner := getattr(function, "function", None)) is not None:  # of a mixture's task
        return own_limit(inner, columns)
    most_seconds = getattr(function, "most_seconds", None)
    try:
        return None if most_seconds is None else float(most_seconds(**columns))
    except Exception:  # columns that the function will refuse by name when it is called
        return None
