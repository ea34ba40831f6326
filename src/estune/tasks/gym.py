"""Every dataset of reasoning-gym as a task `reasoning_gym:NAME`: endless puzzles with a verifier.

The library is imported only when such a task is used. A separate process makes the rows
(gym_rows.py); gym_scoring.py protects the verifiers from the model's text.
"""

import difflib
import json
import os
import subprocess
import sys
from functools import partial

from estune.common.types import Row
from estune.errors import ConfigError, DataError
from estune.tasks.base import Task, count_of_endless
from estune.tasks.gym_scoring import datasets, gym_reward

PREFIX = "reasoning_gym:"
SIZE = 200  # default number of rows of a split


def gym_task(name: str) -> Task:
    """Return the task of reasoning-gym's dataset `name`.

    Raises:
        ConfigError: there is no such dataset (the message suggests the nearest), or reasoning-gym
            is not installed.
    """
    if name not in (names := gym_names()):
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"reasoning_gym has no dataset {name!r}; did you mean {nearest!r}? "
            "estune tasks reasoning_gym lists them"
        )
    return Task(
        name=PREFIX + name,
        summary=f"reasoning-gym's {name}",
        train=partial(_rows, name, "train"),
        test=partial(_rows, name, "test"),
        reward_funcs=(gym_reward,),
        defaults={"max_completion_length": 1024},
        source="generated",
    )


def gym_names() -> list[str]:
    """Return the names of the datasets, without `composite`, which mixes others."""
    return sorted(set(datasets()) - {"composite"})


def _rows(name: str, split: str, count: int | None) -> list[Row]:
    """Return rows from a process in which sets of strings have a fixed order."""
    program = [sys.executable, "-m", "estune.tasks.gym_rows"]
    command = [*program, name, split, str(count_of_endless(count, SIZE, PREFIX + name))]
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": paths}
    # -m puts the working folder first on the import path, so it must not be the user's.
    done = subprocess.run(
        command, env=env, cwd=os.path.abspath(os.sep), capture_output=True, text=True
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(f"{PREFIX}{name}: its rows cannot be made ({why})")
    return [json.loads(line) for line in done.stdout.splitlines()]
