"""What a config names, loaded: training rows, held-out rows and reward functions.

`datasets:` is a list as in TRL, with a weight each; all entries with their rewards become one mixture.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from estune.common.fields import checked
from estune.common.other_names import nearest
from estune.config import RunConfig
from estune.errors import ConfigError, InputError
from estune.run.mixture import Mixture, Part
from estune.tasks import Task, get_task
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import has_split, load_rows


def data_and_rewards(config: RunConfig) -> tuple[Any, Any, Any]:
    """Training rows, held-out rows or None, and reward functions, from the task or from what is named.

    Raises:
        ConfigError: neither a task nor a dataset with rewards is named.
    """
    if config.datasets:
        return mixtures(config, evaluating=_evaluating(config))
    task = get_task(config.task) if config.task else None
    if task is None and not config.dataset_name:
        raise ConfigError("task: give one (see estune tasks), or dataset_name and reward_funcs")
    rewards: Any = config.reward_funcs or (task.reward_funcs if task else None)
    if rewards is None:
        raise ConfigError(
            "reward_funcs: give a built-in name or a dotted path such as my_rewards.short"
        )
    if config.dataset_name:
        return *_named_datasets(config, task.adapt if task else None), rewards
    assert task is not None
    held_out = _named_held_out(config, task.adapt) if config.eval_dataset_name else None
    if held_out is None and _evaluating(config):
        held_out = task.test(config.max_eval_samples)
    return task.train(config.max_train_samples), held_out, rewards


def _named_datasets(config: RunConfig, adapt: Any = None) -> tuple[Any, Any]:
    assert config.dataset_name is not None
    train_rows = load_rows(
        config.dataset_name, config.dataset_train_split, config.dataset_config, adapt
    )
    if (
        not config.eval_dataset_name
        and _evaluating(config)
        and has_split(config.dataset_name, config.dataset_test_split)
    ):
        held_out = load_rows(
            config.dataset_name, config.dataset_test_split, config.dataset_config, adapt
        )[: config.max_eval_samples]
    else:
        held_out = _named_held_out(config, adapt)
    return train_rows[: config.max_train_samples], held_out


def _named_held_out(config: RunConfig, adapt: Any) -> Any:
    """The rows of eval_dataset_name, None where there is none."""
    if not (name := config.eval_dataset_name):
        return None
    return load_rows(name, _split_of(name, config), config.dataset_config, adapt)[
        : config.max_eval_samples
    ]


def _split_of(name: str, config: RunConfig) -> str:
    """The split to read held-out data from: a single file has only one."""
    return config.dataset_test_split if has_split(name, config.dataset_test_split) else "train"


def _evaluating(config: RunConfig) -> bool:
    return config.eval_strategy != "no" or config.eval_on_start


def _key(default: Any, **limits: Any) -> Any:
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class Entry:
    """One mapping of `datasets:`: a `task`, or data by `path`, `name` and `split` as in TRL.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or it names neither or both of task and path.
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
            raise ConfigError("give a task, or the path of data; one of them")


def mixtures(config: RunConfig, *, evaluating: bool) -> tuple[Mixture, Mixture | None, list[Any]]:
    """What `config.datasets` names: the mixture to train on, the held-out rows of those that have some, the reward functions.

    Raises:
        InputError: an entry is wrong, or its data or rewards cannot be had.
    """
    train, test = [], []
    for number, values in enumerate(config.datasets or [], 1):
        try:
            part, held_out = _parts(_entry(values), config, evaluating)
        except InputError as error:
            raise type(error)(f"datasets: entry {number}: {error}") from None
        train.append(part)
        test += [Part(part.name, held_out)] if held_out else []
    if evaluating and not test:
        raise ConfigError(
            "datasets: none of them has held-out rows to evaluate on; give one a test_split that it has"
        )
    mixture = Mixture(train)
    return mixture, Mixture(test) if test else None, mixture.reward_funcs


def _parts(entry: Entry, config: RunConfig, evaluating: bool) -> tuple[Part, list[Any] | None]:
    """What the entry trains on, and its held-out rows where they are wanted and there are some."""
    task = get_task(entry.task) if entry.task else None
    rewards = resolve_rewards(
        entry.reward_funcs or (task.reward_funcs if task else config.reward_funcs)
    )
    name = entry.label or entry.task or entry.path or ""
    when = entry.from_step, entry.until_step, entry.from_reward
    return Part(name, _rows(entry, task, config), rewards, entry.weight, *when), _held_out(
        entry, task, config
    ) if evaluating else None


def _entry(values: dict[str, Any]) -> Entry:
    names = [each.name for each in fields(Entry)]
    for key in values:
        if key not in names:
            raise ConfigError(f"unknown setting {key!r}{nearest(str(key), names)}")
    return Entry(**values)


def _rows(entry: Entry, task: Task | None, config: RunConfig) -> list[Any]:
    if task:
        return task.train(config.max_train_samples)
    return load_rows(entry.path or "", entry.split, entry.name)[: config.max_train_samples]


def _held_out(entry: Entry, task: Task | None, config: RunConfig) -> list[Any] | None:
    if task:
        return task.test(config.max_eval_samples)
    if not has_split(entry.path or "", entry.test_split):
        return None
    return load_rows(entry.path or "", entry.test_split, entry.name)[: config.max_eval_samples]
