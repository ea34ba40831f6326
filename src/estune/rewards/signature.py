"""Check the parameters of reward functions before anything is generated."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from estune.errors import RewardError

RewardFunc = Callable[..., Any]

# Offered to every reward function in addition to the dataset's columns, as in TRL.
OFFERED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# Dataset columns that no reward function gets: `prompt` and `completion` as in TRL, the others
# because a call uses their names for something else.
NOT_PASSED = ("prompt", "completion", "self", *OFFERED)


def reward_name(function: RewardFunc) -> str:
    """Return the name under which a function's reward is logged, as in TRL."""
    return str(getattr(function, "__name__", type(function).__name__))


def check_parameters(function: RewardFunc, columns: Sequence[str]) -> None:
    """Check that `function` can be called with the arguments that a run offers.

    Raises:
        RewardError: the function needs a parameter that nothing provides, or does not take
            `completions`.
    """
    parameters = _parameters(function)
    if parameters is None:
        return
    for parameter in parameters.values():
        by_position = parameter.kind is parameter.POSITIONAL_ONLY
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        needed = parameter.default is parameter.empty and not variable
        if by_position or (needed and parameter.name not in {*OFFERED, *columns}):
            offered = ", ".join([*OFFERED[:3], *sorted(columns)])
            raise RewardError(
                f"reward function {reward_name(function)}: nothing provides its parameter "
                f"{parameter.name!r}; it is called with keywords: {offered}"
            )
    if not _takes_all(parameters) and "completions" not in parameters:
        raise RewardError(
            f"reward function {reward_name(function)}: takes no 'completions'; "
            "write it as def f(completions, **columns) and return one number per completion"
        )


def accepted(function: RewardFunc, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `keywords` that `function` takes; all of them if it has **columns."""
    parameters = _parameters(function)
    if parameters is None or _takes_all(parameters):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def _parameters(function: RewardFunc) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return None


def _takes_all(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values())
