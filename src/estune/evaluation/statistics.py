"""What can be said of a model from a sample of prompts: estimates, how sure they are, and whether two models differ.

Prompts are what was sampled, so every interval and test is over prompts: several completions of one prompt are first
made one number. All are pure functions, and seeded where they draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from estune.common.moments import divided, exponent, scaled

Array = NDArray[np.float64]
_RESAMPLES = 10_000
_AT_ONCE = 1 << 22  # numbers drawn at a time
_EXACT = 16  # differences whose 2ⁿ signs are all tried
_Z = 1.959963984540054  # Φ⁻¹(0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % confidence interval; NaN where nothing is known."""

    value: float
    low: float
    high: float

    def times(self, power: int) -> "Estimate":
        """The estimate times 2**power."""
        return Estimate(
            *(float(divided(figure, -power)) for figure in (self.value, self.low, self.high))
        )


@dataclass(frozen=True)
class Test:
    """A two-sided p-value: `exact` from all sign flips, else from `draws` random ones."""

    p: float
    exact: bool
    draws: int


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """The chance that of k samples drawn from these without putting back at least one succeeds, 1 − C(n−c, k) ÷ C(n, k).

    Unbiased for the chance that one of k new samples succeeds (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1).

    Raises:
        ValueError: k is not from 1 to `samples`.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, of which there are {samples}")
    return 1 - math.comb(samples - successes, k) / math.comb(samples, k)


def wilson(successes: int, count: int) -> Estimate:
    """A plain fraction with Wilson's score interval (1927)."""
    if not count:
        return Estimate(math.nan, math.nan, math.nan)
    z2, fraction = _Z**2, successes / count
    middle = (fraction + z2 / (2 * count)) / (1 + z2 / count)
    half = (
        _Z / (1 + z2 / count) * math.sqrt(fraction * (1 - fraction) / count + z2 / (4 * count**2))
    )
    return Estimate(fraction, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """The mean of one number a prompt, (P,), with the percentile bootstrap's interval over prompts; NaN are left out."""
    there = _known(values)
    if not there.size:
        return Estimate(math.nan, math.nan, math.nan)
    power = exponent(there)
    there = divided(there, power)
    rng = np.random.default_rng(seed)
    draw = partial(_bootstrap, there, rng)
    means = np.concatenate([draw(size) for size in _chunks(_RESAMPLES, there.size)])
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(there.mean()), float(low), float(high)).times(power)


def standard_error(values: ArrayLike) -> float:
    """Of the mean of `values`, (P,): s ÷ √P with P − 1 below s; NaN below two values."""
    there = _known(values)
    return (
        scaled(lambda known: known.std(ddof=1) / math.sqrt(known.size), there)
        if there.size > 1
        else math.nan
    )


def sign_flip(differences: ArrayLike, *, seed: int = 0, draws: int = 100_000) -> Test:
    """Whether paired differences (P,) have mean 0: if the two models are alike, each sign is as likely as the other.

    p is the part of all sign patterns whose sum is at least as far from 0 as the one seen. Zeros have no sign and drop out.
    Up to 16 others all patterns are tried; beyond, `draws` random ones, and p = (hits + 1) ÷ (draws + 1), never 0.
    """
    there = _known(differences)
    there = divided(there[there != 0], exponent(there))
    seen = abs(float(there.sum())) * (
        1 - 1e-12
    )  # sums of the same numbers in another order count as equal
    if there.size <= _EXACT:
        patterns = np.arange(2**there.size)[:, None] >> np.arange(there.size) & 1
        return Test(float(np.mean(np.abs((1 - 2 * patterns) @ there) >= seen)), True, len(patterns))
    rng = np.random.default_rng(seed)
    hits = sum(
        int(np.sum(np.abs(_flips(rng, size, there)) >= seen)) for size in _chunks(draws, there.size)
    )
    return Test((hits + 1) / (draws + 1), False, draws)


def _known(values: ArrayLike) -> Array:
    array = np.asarray(values, np.float64)
    known: Array = array[~np.isnan(array)]
    return known


def _chunks(count: int, width: int) -> Sequence[int]:
    most = max(1, _AT_ONCE // max(1, width))
    return [min(most, count - start) for start in range(0, count, most)]


def _bootstrap(values: Array, rng: np.random.Generator, size: int) -> Array:
    drawn: Array = values[rng.integers(values.size, size=(size, values.size))].mean(axis=1)
    return drawn


def _flips(rng: np.random.Generator, size: int, values: Array) -> Array:
    signs = 1.0 - 2.0 * rng.integers(2, size=(size, values.size), dtype=np.int8)
    sums: Array = signs @ values
    return sums
