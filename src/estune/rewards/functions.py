"""Reward functions: found by name or dotted path, and their parameters checked before anything is generated."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from estune.errors import ConfigError, RewardError
from estune.visible import one_line

RewardFunc = Callable[..., Any]

# What every reward function is offered beside the dataset's columns, as in TRL.
OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# Columns that no reward function gets: `prompt` and `completion` as in TRL, others since their names mean something else in the call.
NOT_PASSED = ("prompt", "completion", "self", *OFFERED)


def resolve_rewards(given: Any) -> list[RewardFunc]:
    """One reward function or a list of them, each a callable, a built-in name, a dotted path, or a reward model's hub id or folder.

    Raises:
        ConfigError: there is none, or one cannot be found or imported.
    """
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed or listed == [None]:
        raise ConfigError("reward_funcs: give at least one reward function, or a task")
    return [_resolve(one) for one in listed]


def reward_name(function: RewardFunc) -> str:
    """The name under which a function's reward is logged, as in TRL."""
    return str(getattr(function, "__name__", type(function).__name__))


def check_parameters(function: RewardFunc, columns: Sequence[str]) -> None:
    """Make sure that `function` can be called with what a run offers it.

    Raises:
        RewardError: it needs a parameter that no column provides, or does not take `completions`.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return  # a builtin without a signature
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    provided = {*OFFERED, *columns}
    for parameter in parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        needed = parameter.default is parameter.empty and (named or positional)
        if positional or (needed and parameter.name not in provided):
            raise RewardError(
                f"reward function {reward_name(function)}: nothing provides its parameter {parameter.name!r}; "
                f"it is called with keywords: {', '.join([*OFFERED[:3], *sorted(columns)])}"
            )
    if not takes_all and "completions" not in parameters:
        raise RewardError(
            f"reward function {reward_name(function)}: takes no 'completions'; "
            "write it as def f(completions, **columns) and return one number a completion"
        )


def accepted(function: RewardFunc, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords that `function` takes: all of them if it has **columns, else those that it names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return keywords
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


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
        raise ConfigError(f"reward_funcs: no built-in reward is named {one!r}; there are {known}; or give a dotted path or a reward model")
    return _imported(one)


def _reward_model(source: str) -> RewardFunc:
    from estune.rewards.model import RewardModel

    return RewardModel(source)


def _builtin() -> dict[str, RewardFunc]:
    from estune.tasks import TASKS

    return {reward_name(function): function for task in TASKS.values() for function in task.reward_funcs}


def _imported(path: str) -> RewardFunc:
    module_name, _, name = path.rpartition(".")
    try:
        with _working_folder_importable():
            function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # importing runs the user's module, which can raise anything
        raise ConfigError(f"reward_funcs: cannot import {path} ({type(error).__name__}: {one_line(error)})") from None
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
