"""Objects of the user's own modules, by dotted path: `my_rewards.short`, `my_task.TASK`."""

import importlib
import sys
from pathlib import Path
from typing import Any

from estune.common.visible import one_line
from estune.errors import ConfigError
from estune.tasks.base import Task


def import_by_path(path: str, setting: str, advice: str = "") -> Any:
    """Return the object at `path`, a module and a name in it.

    The working folder comes last on the import path, so that it shadows no installed package.

    Raises:
        ConfigError: it cannot be imported; the message begins with `setting`.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        kind = type(error).__name__
        why = f"cannot import {path} ({kind}: {one_line(error)}){advice}"
        raise ConfigError(f"{setting}: {why}") from None


def imported_task(path: str) -> Task:
    """Return the Task at `path`.

    Raises:
        ConfigError: it cannot be imported, or is not a Task.
    """
    task = import_by_path(path, "task", "; see estune new-task")
    if not isinstance(task, Task):
        raise ConfigError(f"task: {path} is a {type(task).__name__}, not an estune.tasks.Task")
    return task
