"""`datasets:` of a YAML file, as TRL has it, with a weight each: every entry loaded, with its rewards, into one mixture."""

from dataclasses import dataclass, field, fields
from typing import Any

from estune.config import RunConfig, checked, nearest
from estune.data import has_split, load_rows
from estune.errors import ConfigError, InputError
from estune.mixture import Mixture, Part
from estune.rewards.functions import resolve_rewards
from estune.tasks import Task, get_task


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
        raise ConfigError("datasets: none of them has held-out rows to evaluate on; give one a test_split that it has")
    mixture = Mixture(train)
    return mixture, Mixture(test) if test else None, mixture.reward_funcs


def _parts(entry: Entry, config: RunConfig, evaluating: bool) -> tuple[Part, list[Any] | None]:
    """What the entry trains on, and its held-out rows where they are wanted and there are some."""
    task = get_task(entry.task) if entry.task else None
    rewards = resolve_rewards(entry.reward_funcs or (task.reward_funcs if task else config.reward_funcs))
    name = entry.label or entry.task or entry.path or ""
    when = entry.from_step, entry.until_step, entry.from_reward
    return Part(name, _rows(entry, task, config), rewards, entry.weight, *when), _held_out(entry, task, config) if evaluating else None


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
