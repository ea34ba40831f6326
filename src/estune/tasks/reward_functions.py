"""Reward functions by name: a task's, one of the user's by its dotted path, or a reward model."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from estune.common.visible import one_line
from estune.errors import ConfigError
from estune.rewards.signature import RewardFunc, reward_name
from estune.tasks import TASKS


def resolve_rewards(given: Any) -> list[RewardFunc]:
    """One reward function or a list of them, each a callable, a built-in name, a dotted path, or a reward model's hub id or folder.

    Raises:
        ConfigError: there is none, or one cannot be found or imported.
    """
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed or listed == [None]:
        raise ConfigError("reward_funcs: give at least one reward function, or a task")
    return [_resolve(one) for one in listed]


def _resolve(one: RewardFunc | str) -> RewardFunc:
    if hasattr(one, "save_pretrained"):  # of transformers: a model or a tokenizer
        raise ConfigError(
            f"reward_funcs: a {type(one).__name__} object is no reward function; save it and its tokenizer with save_pretrained "
            "and give the folder's path, or a hub id"
        )
    if callable(one):
        return one
    if not isinstance(one, str):
        raise ConfigError(f"reward_funcs: {one!r} is neither a function nor the name of one")
    builtin = _builtin()
    if one in builtin:
        return builtin[one]
    if "/" in one or Path(one).is_dir():
        return _reward_model(one)
    if "." not in one:
        known = ", ".join(sorted(builtin))
        raise ConfigError(
            f"reward_funcs: no built-in reward is named {one!r}; there are {known}; or give a dotted path or a reward model"
        )
    return _imported(one)


def _reward_model(source: str) -> RewardFunc:
    from estune.rewards.reward_model import RewardModel

    return RewardModel(source)


def _builtin() -> dict[str, RewardFunc]:
    return {
        reward_name(function): function for task in TASKS.values() for function in task.reward_funcs
    }


def _imported(path: str) -> RewardFunc:
    module_name, _, name = path.rpartition(".")
    try:
        with _working_folder_importable():
            function = getattr(importlib.import_module(module_name), name)
    except (
        Exception,
        SystemExit,
    ) as error:  # importing runs the user's module, which can raise anything
        raise ConfigError(
            f"reward_funcs: cannot import {path} ({type(error).__name__}: {one_line(error)})"
        ) from None
    if not callable(function):
        raise ConfigError(f"reward_funcs: {path} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


@contextmanager
def _working_folder_importable() -> Any:
    """The working folder is on the import path, last, so that nothing in it can shadow an installed package."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    yield
