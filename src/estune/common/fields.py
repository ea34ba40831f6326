"""Settings as fields of a dataclass, with limits and help text; check their values.

sigma: float = setting(1e-3, "σ: standard deviation of the noise", group="strategy", above=0)
"""

import dataclasses
import math
import operator
from functools import cache
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from estune.errors import ConfigError

_LIMITS = {
    "above": (operator.gt, "greater than"),
    "least": (operator.ge, "at least"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def setting(
    default: Any, help: str, *, group: str, resume: bool = False, **limits: float | None
) -> Any:
    """Return a dataclass field for a setting.

    Args:
        help: the line that `--help` and docs/settings.md show.
        group: the heading under which they show it.
        resume: whether the user may change it when a run is resumed.
        limits: above, least, most or below, for numbers.
    """
    metadata = {"help": help, "group": group, "resume": resume, **limits}
    return dataclasses.field(default=default, metadata=metadata)


def checked(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` converted to the declared types of the fields of `kind`.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names its field.
    """
    return {
        field.name: _checked(kind, field, values[field.name]) for field in dataclasses.fields(kind)
    }


def _checked(kind: type, field: dataclasses.Field[Any], value: Any) -> Any:
    if isinstance(value, bool) and _takes_numbers(field):  # pydantic would read true as 1
        raise ConfigError(f"{field.name}: must be a number; it is {value}")
    value = _as_written(field, value)
    try:
        converted = _adapters(kind)[field.name].validate_python(value)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise ConfigError(f"{field.name}: must be {wanted}; it is {value!r}") from None
    for number in converted if isinstance(converted, list) else [converted]:
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _check_limits(field, number)
    return converted


def _as_written(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return what the user means: `no`, which YAML reads as false, or a list of a single item."""
    if value is False and "no" in get_args(field.type):
        return "no"
    if isinstance(value, (str, int, float)) and "list" in str(field.type):
        return [value]
    return value


def _takes_numbers(field: dataclasses.Field[Any]) -> bool:
    return bool({field.type, *get_args(field.type)} & {int, float, list[float]})


def _check_limits(field: dataclasses.Field[Any], value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{field.name}: must be a finite number; it is {value}")
    for name, (holds, words) in _LIMITS.items():
        limit = field.metadata.get(name)
        if limit is not None and not holds(value, limit):
            raise ConfigError(f"{field.name}: must be {words} {limit}; it is {value}")


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in get_type_hints(kind).items()}
