"""Read numbers from what a reward function returned: a list, an array, a tensor or the like."""

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from estune.common.visible import one_line
from estune.errors import clean


class NotRewards(Exception):
    """A function returned something other than rewards; the message shows what."""


def numbers(values: Any, count: int) -> list[float]:
    """Return `values` as `count` numbers, with NaN for None.

    Raises:
        NotRewards: `values` are not a list of `count` numbers or Nones.
    """
    if not is_list(values):
        raise NotRewards(shown(values))
    if len(values) != count:
        raise NotRewards(f"{len(values)} rewards for {count} completion{'s' * (count != 1)}")
    # A pandas Series is indexed by label and a DataFrame iterates over column names, so the
    # underlying array is used.
    by_position = values.to_numpy() if hasattr(values, "to_numpy") else values
    listed = list(islice(iter(by_position), count))
    if len(listed) != count:
        kind = type(values).__name__
        raise NotRewards(f"a {kind} that claims {count} rewards and has {len(listed)}")
    return [_number(i, value) for i, value in enumerate(listed)]


def is_list(values: Any) -> bool:
    """Return whether `values` is a list, an array or the like; a text or a scalar is not."""
    if isinstance(values, (str, bytes, Mapping)) or getattr(values, "ndim", 1) == 0:
        return False
    return hasattr(values, "__len__") and hasattr(values, "__getitem__")


def shown(value: Any) -> str:
    """Return `value` as at most 60 characters of one line."""
    try:
        return one_line(repr(value), 60)
    except BaseException as error:  # an int of too many digits, or a __repr__ that raises
        return f"a {clean(type(value).__name__)} without a text ({clean(type(error).__name__)})"


def _number(index: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(_single(value))
    except Exception:  # a tensor of several numbers raises RuntimeError, 10**400 OverflowError
        number = math.nan
    if not math.isfinite(number):
        raise NotRewards(f"{shown(value)} for completion {index}")
    return number


def _single(value: Any) -> Any:
    """Return the only element of an array or tensor, or `value` itself."""
    value = value.detach() if hasattr(value, "detach") else value
    while getattr(value, "ndim", 0) and len(value) == 1:
        value = value[0]
    return value
