"""Add up the rewards of several functions, with weights.

If a sum is too large for a double, the function that contributed the largest term has failed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from estune.rewards.call import Failure

Array = NDArray[np.float64]
ByFunction = Mapping[str, Array]  # name → rewards (B,), NaN where a reward is missing

_TOO_LARGE = (
    "which makes the weighted sum of the rewards larger than a double can be;"
    " return smaller numbers or lower its weight"
)


def weighted(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """Return the sums (B,): NaN where all rewards are missing or the sum is too large."""
    total = _sums(by_function, weights)
    total[~np.isfinite(total)] = np.nan
    return total


def within_range(
    by_function: ByFunction, weights: Sequence[float]
) -> tuple[dict[str, Array], dict[str, dict[int, Failure]]]:
    """Return the rewards with NaN for those that make a sum too large, and these as failures."""
    remaining = {name: values.copy() for name, values in by_function.items()}
    failures: dict[str, dict[int, Failure]] = {name: {} for name in by_function}
    while (too_large := np.flatnonzero(np.isinf(_sums(remaining, weights)))).size:
        for index in map(int, too_large):
            name = _largest(remaining, weights, index)
            failures[name][index] = Failure(f"returned {remaining[name][index]:g}, {_TOO_LARGE}")
            remaining[name][index] = np.nan
    return remaining, failures


def _sums(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """Return the sums (B,): NaN where all rewards are missing, ±∞ where a sum or term overflows."""
    stacked = np.stack(list(by_function.values()))  # (functions, B)
    with np.errstate(over="ignore", invalid="ignore"):
        terms = stacked * np.array(weights)[:, None]
        total: Array = np.nansum(terms, axis=0)
    total[np.isinf(terms).any(axis=0)] = np.inf  # ∞ − ∞ = NaN would look like a missing reward
    total[np.isnan(stacked).all(axis=0)] = np.nan
    return total


def _largest(by_function: ByFunction, weights: Sequence[float], index: int) -> str:
    """Return the name of the function that contributes the largest term to a completion's sum."""
    rewards = np.array([values[index] for values in by_function.values()])
    with np.errstate(over="ignore"):
        terms = np.abs(rewards * np.array(weights))
    return list(by_function)[int(np.nanargmax(terms))]
