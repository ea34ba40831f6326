"""What a built-in task consists of, so that the command line, the trainer and the tests treat all alike.

A task is data and reward functions only; it knows nothing of models, and importing it costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estune.common.types import Row
from estune.errors import DataError

RewardFunc = Callable[..., Any]
TextOrMessages = str | Sequence[Mapping[str, Any]]
LogMetric = Callable[[str, float], None]


@dataclass(frozen=True)
class Task:
    """A named dataset with the reward functions that score it.

    `train` and `test` take the number of rows wanted (None: the task's own size) and always return the same
    rows, in fresh objects. `defaults` are config fields that suit the task; the user's own settings win.
    `source` says where rows that are not made here come from. `adapt` turns the rows of a user's own dataset into the
    task's columns; if it has a parameter `what`, that is the dataset's name for messages.
    """

    name: str
    summary: str
    train: Callable[[int | None], list[Row]]
    test: Callable[[int | None], list[Row]]
    reward_funcs: tuple[RewardFunc, ...]
    defaults: Mapping[str, Any]
    source: str = ""
    adapt: Callable[..., Iterable[Mapping[str, Any]]] | None = None


def completion_text(completion: TextOrMessages) -> str:
    """Return what the model wrote: a plain completion itself, or a conversation's last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"] or "")


def first_rows(rows: Sequence[Row], count: int | None, what: str) -> list[Row]:
    """Return the first `count` rows (None: all); `what` names the rows in the error when there are fewer."""
    if count is None:
        return list(rows)
    if not 0 <= count <= len(rows):
        raise DataError(
            f"{what} has {len(rows)} rows, so it cannot give {count}; ask for at most {len(rows)}"
        )
    return list(rows[:count])


def hub_rows(
    task: str, hub: str, split: str, config: str | None, adapt: Callable[..., Any]
) -> list[Row]:
    """Return a hub dataset's rows in a task's columns; where it cannot be had, a DataError that tells the way without a network."""
    from estune.tasks.rows import load_rows

    try:
        return load_rows(hub, split, config, adapt=adapt)
    except DataError as error:
        raise DataError(
            f"{task}: {error}; without a network: --task {task} --dataset_name FILE, of the same columns"
        ) from None


def log_mean(log_metric: LogMetric | None, name: str, values: Sequence[float]) -> None:
    """Log the mean of `values` where the trainer offers a log and there is something to average."""
    if log_metric is not None and values:
        log_metric(name, sum(values) / len(values))
