"""Work that a reward function needs once per run, done by the trainer for all reward processes,
which come and go.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def prepared_by(prepare: Callable[[], None]) -> Callable[[_Function], _Function]:
    """Mark a reward function for which `prepare` is called before a process that calls it starts.

    What it finds out reaches that process by an environment variable.
    """

    def mark(function: _Function) -> _Function:
        function.estune_prepare = prepare  # type: ignore[attr-defined]
        return function

    return mark


def prepare(function: Any) -> None:
    """Do what `function`, or the one that it wraps, was marked with."""
    while isinstance(function, functools.partial) or hasattr(function, "function"):
        function = function.func if isinstance(function, functools.partial) else function.function
    work = getattr(function, "estune_prepare", None)
    if work is not None:
        work()
