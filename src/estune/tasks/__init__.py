"""The built-in tasks by name; a first run then needs no dataset or reward function."""

import difflib

from estune.common.types import Row
from estune.errors import ConfigError
from estune.tasks.base import RewardFunc, Task, completion_text
from estune.tasks.code import CODE_TASKS
from estune.tasks.conciseness import CONCISENESS, CONCISENESS_CORRECT
from estune.tasks.countdown import COUNTDOWN, COUNTDOWN_BINARY
from estune.tasks.gym import PREFIX, gym_task
from estune.tasks.imported import imported_task
from estune.tasks.math import MATH_TASKS

__all__ = ["TASKS", "RewardFunc", "Row", "Task", "completion_text", "get_task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        CONCISENESS,
        CONCISENESS_CORRECT,
        COUNTDOWN,
        COUNTDOWN_BINARY,
        *MATH_TASKS,
        *CODE_TASKS,
    )
}


def get_task(name: str) -> Task:
    """Return a built-in task, `reasoning_gym:NAME`, or your own by its path, such as my_task.TASK.

    Raises:
        ConfigError: there is none; the message suggests the nearest name.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith(PREFIX):
        return gym_task(name.removeprefix(PREFIX))
    if "." in name:
        return imported_task(name)
    # Without a cutoff there is always a nearest name.
    nearest = difflib.get_close_matches(name, [*TASKS, PREFIX + "NAME"], n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"there is no task {name!r}; did you mean {nearest!r}? "
        f"The tasks are {', '.join(TASKS)}, {PREFIX}NAME"
    )
