"""The built-in tasks by name, so that a first run needs neither a dataset nor a reward function."""

from __future__ import annotations

import difflib

from estune.errors import ConfigError
from estune.tasks.base import RewardFunc, Row, Task
from estune.tasks.conciseness import CONCISENESS, CONCISENESS_CORRECT
from estune.tasks.countdown import COUNTDOWN, COUNTDOWN_BINARY

__all__ = ["TASKS", "RewardFunc", "Row", "Task", "get_task"]

TASKS: dict[str, Task] = {task.name: task for task in (CONCISENESS, CONCISENESS_CORRECT, COUNTDOWN, COUNTDOWN_BINARY)}


def get_task(name: str) -> Task:
    """Return the task called `name`; for an unknown name, a ConfigError that says which one was near."""
    if name in TASKS:
        return TASKS[name]
    # With no cutoff there is always a nearest name, however far off the given one is.
    nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.0)[0]
    raise ConfigError(f"there is no task {name!r}; did you mean {nearest!r}? The tasks are {', '.join(TASKS)}")
