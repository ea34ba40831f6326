"""The class of tasks and its helpers. A task is data and reward functions, without a model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from estune.common.types import Row
from estune.errors import DataError

RewardFunc = Callable[..., Any]
TextOrMessages = str | Sequence[Mapping[str, Any]]  # what TRL passes as a completion
LogMetric = Callable[[str, float], None]

MAX_MADE_ROWS = 1_000_000  # countdown makes 8,000 per second


@dataclass(frozen=True)
class Task:
    """A named dataset with the reward functions that score it.

    train, test: take the number of rows wanted (None: the task's own size) and always return the
        same rows, as new objects.
    defaults: settings that suit the task; the user's own take precedence.
    source: where rows that are not made here come from.
    adapt: turns the rows of a user's own dataset into the task's columns. If it has a parameter
        `what`, it gets the dataset's name, for messages.
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
    """Return what the model wrote: the text itself, or the content of the last message."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"] or "")


def first_rows(rows: Sequence[Row], count: int | None, what: str) -> list[Row]:
    """Return the first `count` rows (None: all).

    Raises:
        DataError: there are fewer; the message names the rows by `what`.
    """
    if count is None:
        return list(rows)
    if not 0 <= count <= len(rows):
        size = len(rows)
        raise DataError(
            f"{what} has {size} rows, so it cannot give {count}; ask for at most {size}"
        )
    return list(rows[:count])


def count_of_endless(count: int | None, usual: int, what: str) -> int:
    """Return how many rows to make of a task that can make any number (None: `usual`).

    Raises:
        DataError: more than memory and patience allow; the message names the task by `what`.
    """
    if count is None:
        return usual
    if not 0 <= count <= MAX_MADE_ROWS:
        raise DataError(f"{what} cannot give {count} rows; ask for at most {MAX_MADE_ROWS}")
    return count


def hub_rows(
    task: str, hub: str, split: str, config: str | None, adapt: Callable[..., Any]
) -> list[Row]:
    """Return a hub dataset's rows in a task's columns.

    Raises:
        DataError: it cannot be loaded; the message says how to do without a network.
    """
    from estune.tasks.rows import load_rows

    try:
        return load_rows(hub, split, config, adapt=adapt)
    except DataError as error:
        advice = f"without a network: --task {task} --dataset_name FILE, with the same columns"
        raise DataError(f"{task}: {error}; {advice}") from None


def log_mean(log_metric: LogMetric | None, name: str, values: Sequence[float]) -> None:
    """Log the mean of `values`, if there is a log and there are values."""
    if log_metric is not None and values:
        log_metric(name, sum(values) / len(values))
