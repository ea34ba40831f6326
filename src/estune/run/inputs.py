"""Load the training rows, held-out rows and reward functions that a config names.

The setting `datasets` is a list as in TRL; its entries become the parts of a mixture.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from estune.common.fields import checked
from estune.common.name_hints import nearest
from estune.common.types import Row
from estune.config import RunConfig
from estune.errors import ConfigError, InputError
from estune.run.mixture import Mixture, Part
from estune.tasks import Task, get_task
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import has_split, load_rows


def data_and_rewards(config: RunConfig) -> tuple[Any, Any, Any]:
    """Return the training rows, the held-out rows (or None) and the reward functions.

    Raises:
        ConfigError: the config names neither a task nor a dataset with reward functions.
    """
    if config.datasets:
        return mixtures(config, evaluating=_evaluating(config))
    task = get_task(config.task) if config.task else None
    if task is None and not config.dataset_name:
        raise ConfigError(
            "task: give one (estune tasks lists them), or dataset_name and reward_funcs"
        )
    rewards: Any = config.reward_funcs or (task.reward_funcs if task else None)
    if rewards is None:
        raise ConfigError(
            "reward_funcs: give a built-in name or a dotted path such as my_rewards.short"
        )
    return _training_rows(config, task), _held_out_rows(config, task), rewards


def _training_rows(config: RunConfig, task: Task | None) -> list[Row]:
    """Return the rows of dataset_name, or else those of the task."""
    most = config.max_train_samples
    if task and not config.dataset_name:
        return task.train(most)[:most]
    name = config.dataset_name or ""
    return _dataset_rows(config, name, config.dataset_train_split, task)[:most]


def _held_out_rows(config: RunConfig, task: Task | None) -> list[Row] | None:
    """Return the rows to evaluate on, or None.

    They come from eval_dataset_name. Without it they come from the test split of the training data,
    if there is one and the config wants evaluations.
    """
    most, split = config.max_eval_samples, config.dataset_test_split
    if name := config.eval_dataset_name:
        if not has_split(name, split):
            split = "train"  # the only split of a single file
        return _dataset_rows(config, name, split, task)[:most]
    if not _evaluating(config):
        return None
    if name := config.dataset_name:
        if not has_split(name, split):
            return None
        return _dataset_rows(config, name, split, task)[:most]
    return task.test(most) if task else None


def _dataset_rows(config: RunConfig, name: str, split: str, task: Task | None) -> list[Row]:
    return load_rows(name, split, config.dataset_config, task.adapt if task else None)


def _evaluating(config: RunConfig) -> bool:
    return config.eval_strategy != "no" or config.eval_on_start


def _key(default: Any, **limits: Any) -> Any:
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Entry:
    """One entry of `datasets`: a `task`, or else a dataset's `path`, `name` and `split`, as in TRL.

    Raises:
        ConfigError: a value has the wrong type or is out of range; or both or neither of task and
            path are given.
    """

    task: str | None = _key(None)
    path: str | None = _key(None)
    name: str | None = _key(None)
    split: str = _key("train")
    test_split: str = _key("test")
    label: str | None = _key(None)
    reward_funcs: list[str] | None = _key(None)
    weight: float = _key(1.0, above=0)
    from_step: int = _key(1, least=1)
    until_step: int | None = _key(None, least=1)
    from_reward: float | None = _key(None)

    def __post_init__(self) -> None:
        for name, value in checked(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        if (self.task is None) == (self.path is None):
            raise ConfigError("give either a task or the path of a dataset")


def mixtures(config: RunConfig, *, evaluating: bool) -> tuple[Mixture, Mixture | None, list[Any]]:
    """Return the training mixture, the held-out mixture (or None) and the reward functions.

    The held-out mixture has only those entries of `datasets` that have held-out rows.

    Raises:
        InputError: an entry is wrong, or its data or reward functions cannot be loaded.
    """
    train: list[Part] = []
    test: list[Part] = []
    for number, values in enumerate(config.datasets or [], 1):
        try:
            entry = _entry(values)
            part = _part(entry, config)
            held_out = _held_out(entry, config) if evaluating else None
        except InputError as error:
            raise type(error)(f"datasets: entry {number}: {error}") from None
        train.append(part)
        if held_out:
            test.append(Part(part.name, held_out))
    if evaluating and not test:
        raise ConfigError(
            "datasets: no entry has held-out rows to evaluate on; "
            "set test_split to a split that the dataset has"
        )
    mixture = Mixture(train)
    return mixture, Mixture(test) if test else None, mixture.reward_funcs


def _entry(values: dict[str, Any]) -> Entry:
    names = [each.name for each in fields(Entry)]
    for key in values:
        if key not in names:
            raise ConfigError(f"unknown setting {key!r}{nearest(str(key), names)}")
    return Entry(**values)


def _part(entry: Entry, config: RunConfig) -> Part:
    task = get_task(entry.task) if entry.task else None
    default = task.reward_funcs if task else config.reward_funcs
    rewards = resolve_rewards(entry.reward_funcs or default)
    if task:
        rows = task.train(config.max_train_samples)
    else:
        rows = load_rows(entry.path or "", entry.split, entry.name)[: config.max_train_samples]
    return Part(
        name=entry.label or entry.task or entry.path or "",
        rows=rows,
        reward_funcs=rewards,
        weight=entry.weight,
        from_step=entry.from_step,
        until_step=entry.until_step,
        from_reward=entry.from_reward,
    )


def _held_out(entry: Entry, config: RunConfig) -> list[Row] | None:
    most = config.max_eval_samples
    if entry.task:
        return get_task(entry.task).test(most)
    path = entry.path or ""
    if not has_split(path, entry.test_split):
        return None
    return load_rows(path, entry.test_split, entry.name)[:most]
