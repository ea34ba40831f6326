"""Means and standard deviations that are right for very large and very small numbers too.

A reward may be 1e308 or 5e-324, whose square or sum overflows or becomes 0. Such numbers are first
divided by a power of two, which changes no digit, and the result is multiplied by it at the end.
Numbers of ordinary size are not divided, so results are the same bits as without this module.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_ORDINARY = 400  # from 2**-400 to 2**400, squares and long sums stay within the range of float64
LARGEST = float(np.finfo(np.float64).max)


def exponent(*arrays: ArrayLike) -> int:
    """Return p such that squares and sums of `arrays` ÷ 2**p are in the range of float64.

    It is 0 for numbers of ordinary size. NaN and ∞ are ignored.
    """
    largest = max((_largest(np.asarray(array, np.float64)) for array in arrays), default=0.0)
    power = math.frexp(largest)[1] if largest else 0
    return power if abs(power) > _ORDINARY else 0


def divided(array: ArrayLike, power: int) -> Array:
    """Return `array` ÷ 2**power; a quotient out of range becomes ∞ or 0."""
    numbers = np.asarray(array, np.float64)
    if not power:
        return numbers
    with np.errstate(over="ignore", under="ignore"):
        scaled: Array = np.ldexp(numbers, -power)
    return scaled


def scaled(statistic: Callable[[Array], Any], values: ArrayLike) -> float:
    """Return `statistic(values)` for a statistic that grows in proportion to the values.

    A mean and a standard deviation do.
    """
    power = exponent(values)
    return float(divided(statistic(divided(values, power)), -power))


def known(values: ArrayLike) -> Array:
    """Return the numbers of `values` that are not NaN, (K,)."""
    numbers = np.asarray(values, np.float64)
    return numbers[~np.isnan(numbers)]


def mean(values: ArrayLike, count: int | None = None) -> float:
    """Return the exact sum, rounded once, divided by `count` (default: how many values there are).

    If `count` is 0, it is NaN.
    """
    numbers = np.asarray(values, np.float64)
    count = numbers.size if count is None else count
    if not count:
        return math.nan
    try:
        return math.fsum(numbers) / count
    except OverflowError:  # the sum or an intermediate sum is out of range
        power = exponent(numbers)
        return float(divided(math.fsum(divided(numbers, power)) / count, -power))


def _largest(array: Array) -> float:
    return float(np.abs(array).max(where=np.isfinite(array), initial=0.0))
