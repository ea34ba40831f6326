"""Find reward functions by name: a task's, a user's by its dotted path, or a reward model."""

from pathlib import Path
from typing import Any

from estune.errors import ConfigError
from estune.rewards.signature import RewardFunc, reward_name
from estune.tasks import TASKS
from estune.tasks.imported import import_by_path


def resolve_rewards(given: Any) -> list[RewardFunc]:
    """Return the reward functions that `given` names: one, or a list of them.

    Each is a callable, a built-in name, a dotted path, or a reward model's hub id or folder.

    Raises:
        ConfigError: there is none, or one cannot be found or imported.
    """
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed or listed == [None]:
        raise ConfigError("reward_funcs: give at least one reward function, or a task")
    return [_resolve(each) for each in listed]


def _resolve(given: RewardFunc | str) -> RewardFunc:
    if hasattr(given, "save_pretrained"):  # a transformers model or tokenizer
        raise ConfigError(
            f"reward_funcs: a {type(given).__name__} object is no reward function; save it and its "
            "tokenizer with save_pretrained and give the folder's path, or a hub id"
        )
    if callable(given):
        return given
    if not isinstance(given, str):
        raise ConfigError(f"reward_funcs: {given!r} is neither a function nor the name of one")
    builtin = {
        reward_name(function): function for task in TASKS.values() for function in task.reward_funcs
    }
    if given in builtin:
        return builtin[given]
    if "/" in given or Path(given).is_dir():
        from estune.rewards.reward_model import RewardModel

        return RewardModel(given)
    if "." not in given:
        raise ConfigError(
            f"reward_funcs: there is no built-in reward {given!r}, only "
            f"{', '.join(sorted(builtin))}; or give a dotted path or a reward model"
        )
    function: RewardFunc = import_by_path(given, "reward_funcs")
    if not callable(function):
        raise ConfigError(f"reward_funcs: {given} is a {type(function).__name__}, not a function")
    return function
