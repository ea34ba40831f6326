"""The calling convention of reward functions, and a check of their parameters before anything is generated."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from estune.errors import RewardError

RewardFunc = Callable[..., Any]

# What every reward function is offered beside the dataset's columns, as in TRL.
OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# Columns that no reward function gets: `prompt` and `completion` as in TRL, others since their names mean something else in the call.
NOT_PASSED = ("prompt", "completion", "self", *OFFERED)


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
