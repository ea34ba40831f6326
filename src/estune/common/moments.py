"""Means and deviations of finite numbers of any size, since 1e308 and 5e-324 are valid rewards.

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
    """Return p such that `arrays` ÷ 2**p are safe, 0 if they are already; NaN and ∞ are ignored."""
    largest = max((_largest(np.asarray(array, np.float64)) for array in arrays), default=0.0)
    power = math.frexp(largest)[1] if largest else 0
    return power if abs(power) > _ORDINARY else 0


def divided(array: ArrayLike, power: int) -> Array:
    """Return `array` ÷ 2**power, ∞ or 0 where it over- or underflows."""
    numbers = np.asarray(array, np.float64)
    if not power:
        return numbers
    with np.errstate(over="ignore", under="ignore"):
        scaled: Array = np.ldexp(numbers, -power)
    return scaled


def scaled(statistic: Callable[[Array], Any], values: ArrayLike) -> float:
    """Return `statistic(values)`, which must scale like the values: a mean or a deviation."""
    power = exponent(values)
    return float(divided(statistic(divided(values, power)), -power))


def known(values: ArrayLike) -> Array:
    """Return the numbers of `values` that are not NaN, (K,)."""
    numbers = np.asarray(values, np.float64)
    return numbers[~np.isnan(numbers)]


def mean(values: ArrayLike, count: int | None = None) -> float:
    """Return the exact sum, rounded once, over `count` (default: their number); NaN for none."""
    numbers = np.asarray(values, np.float64)
    count = numbers.size if count is None else count
    if not count:
        return math.nan
    try:
        return math.fsum(numbers) / count
    except OverflowError:  # in the sum or an intermediate one
        power = exponent(numbers)
        return float(divided(math.fsum(divided(numbers, power)) / count, -power))


def _largest(array: Array) -> float:
    return float(np.abs(array).max(where=np.isfinite(array), initial=0.0))
