"""Means and deviations of finite numbers of any size: 1e308 or 5e-324 is a reward like another.

Squares and sums of such numbers overflow or vanish. Where that can happen the numbers are first
divided by a power of two, which changes no digit, and the result is multiplied by it again.
Ordinary numbers are left as they are, so that their results keep their bits.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_ORDINARY = 400  # between 2**-400 and 2**400 neither squares nor long sums are in danger
LARGEST = float(np.finfo(np.float64).max)


def exponent(*arrays: ArrayLike) -> int:
    """The power of two by which to divide `arrays`, 0 for ordinary ones; NaN and ∞ don't count."""
    largest = max((_largest(np.asarray(array, np.float64)) for array in arrays), default=0.0)
    power = math.frexp(largest)[1] if largest else 0
    return power if abs(power) > _ORDINARY else 0


def divided(array: ArrayLike, power: int) -> Array:
    """`array` ÷ 2**power, ∞ or 0 where a double holds no such number; unchanged if power is 0."""
    numbers = np.asarray(array, np.float64)
    if not power:
        return numbers
    with np.errstate(over="ignore", under="ignore"):
        scaled: Array = np.ldexp(numbers, -power)
    return scaled


def scaled(statistic: Callable[[Array], Any], values: ArrayLike) -> float:
    """`statistic(values)`, which must scale as the values do: a mean, a standard deviation."""
    power = exponent(values)
    return float(divided(statistic(divided(values, power)), -power))


def mean(values: ArrayLike, count: int | None = None) -> float:
    """The exact sum, rounded once, over `count` (default: how many there are); NaN for none."""
    numbers = np.asarray(values, np.float64)
    count = numbers.size if count is None else count
    if not count:
        return math.nan
    try:
        return math.fsum(numbers) / count
    except OverflowError:  # of the sum, or on the way to it
        power = exponent(numbers)
        return float(divided(math.fsum(divided(numbers, power)) / count, -power))


def _largest(array: Array) -> float:
    return float(np.abs(array).max(where=np.isfinite(array), initial=0.0))
