"""Estimate means with their uncertainty, and test whether two models differ.

The prompts are regarded as a sample of all prompts, so intervals and tests are over prompts. If a
prompt has several completions, the caller first averages them. Random draws depend only on `seed`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estune.common.moments import divided, exponent, known, scaled

Array = NDArray[np.float64]
_RESAMPLES = 10_000
_AT_ONCE = 1 << 22  # how many random numbers are in memory at a time
_EXACT = 16  # for up to n = 16 differences, all 2ⁿ sign patterns are tried
_Z = 1.959963984540054  # Φ⁻¹(0.975)


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % confidence interval; all are NaN if there are no data."""

    value: float
    low: float
    high: float

    def times(self, power: int) -> "Estimate":
        """Return the estimate times 2**power."""
        figures = divided([self.value, self.low, self.high], -power)
        return Estimate(*map(float, figures))


@dataclass(frozen=True)
class SignFlipTest:
    """A two-sided p-value; `exact` if it comes from all sign patterns, not from random ones."""

    p: float
    exact: bool


_NOTHING = Estimate(math.nan, math.nan, math.nan)


def wilson(successes: int, count: int) -> Estimate:
    """Return successes ÷ count, with Wilson's score interval (1927)."""
    if not count:
        return _NOTHING
    z2 = _Z**2
    fraction = successes / count
    scale = 1 + z2 / count
    middle = (fraction + z2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(fraction * (1 - fraction) / count + z2 / (4 * count**2))
    return Estimate(fraction, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean of `values`, one per prompt, with a percentile-bootstrap interval.

    NaN are left out.
    """
    numbers = known(values)
    if not numbers.size:
        return _NOTHING
    power = exponent(numbers)
    numbers = divided(numbers, power)
    rng = np.random.default_rng(seed)
    means = []
    for size in _chunks(_RESAMPLES, numbers.size):
        drawn = rng.integers(numbers.size, size=(size, numbers.size))
        means.append(numbers[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Estimate(float(numbers.mean()), float(low), float(high)).times(power)


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean of `values`: s ÷ √P, with P − 1 in the variance s².

    NaN are left out. For fewer than two values the result is NaN.
    """
    numbers = known(values)
    if numbers.size < 2:
        return math.nan
    return scaled(lambda array: array.std(ddof=1) / math.sqrt(array.size), numbers)


def sign_flip(differences: ArrayLike, *, seed: int = 0, draws: int = 100_000) -> SignFlipTest:
    """Test whether the paired differences between two models, one per prompt, have mean 0.

    If they do, + and − are equally likely for each difference. So p is the fraction of all patterns
    of signs for which the sum is at least as far from 0 as the observed sum. Differences of 0 are
    left out. For more than 16 differences, `draws` random patterns are tried instead of all, and
    p = (hits + 1) ÷ (draws + 1), which is never 0.
    """
    numbers = known(differences)
    numbers = divided(numbers[numbers != 0], exponent(numbers))
    observed = abs(float(numbers.sum())) * (1 - 1e-12)  # other orders of summation round otherwise
    if numbers.size <= _EXACT:
        patterns = np.arange(2**numbers.size)[:, None] >> np.arange(numbers.size) & 1
        sums = (1 - 2 * patterns) @ numbers
        return SignFlipTest(float(np.mean(np.abs(sums) >= observed)), True)
    rng = np.random.default_rng(seed)
    hits = 0
    for size in _chunks(draws, numbers.size):
        signs = 1.0 - 2.0 * rng.integers(2, size=(size, numbers.size), dtype=np.int8)
        hits += int(np.sum(np.abs(signs @ numbers) >= observed))
    return SignFlipTest((hits + 1) / (draws + 1), False)


def _chunks(count: int, width: int) -> Iterator[int]:
    """Split `count` rows of `width` random numbers into chunks that fit in memory; yield sizes."""
    most = max(1, _AT_ONCE // max(1, width))
    for start in range(0, count, most):
        yield min(most, count - start)
