"""A task of the user's own, found by its dotted path as reward functions are: `--task my_task.TASK`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from estune.errors import ConfigError
from estune.tasks.base import Task


def imported_task(path: str) -> Task:
    """Return the Task at `path`, a module and a name in it; the working folder comes last on the import path.

    Raises:
        ConfigError: it cannot be imported, or is no Task.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that nothing in it can shadow an installed package
    module, _, name = path.rpartition(".")
    try:
        task = getattr(importlib.import_module(module), name)
    except (
        Exception,
        SystemExit,
    ) as error:  # importing runs the user's module, which can raise anything
        raise ConfigError(
            f"task: cannot import {path} ({type(error).__name__}: {error}); see estune new-task"
        ) from None
    if not isinstance(task, Task):
        raise ConfigError(f"task: {path} is a {type(task).__name__}, not an estune.tasks.Task")
    return task
