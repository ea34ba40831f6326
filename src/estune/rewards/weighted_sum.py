"""The weighted sum of several reward functions' numbers, one per completion.

A sum that is too large for a double is no reward. It counts as a failure of the function with the
largest part in it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from estune.rewards.call import Failure

Array = NDArray[np.float64]
ByFunction = Mapping[str, Array]  # name → rewards (B,), NaN where there is none

_TOO_LARGE = (
    "which makes the weighted sum of the rewards larger than a double can be;"
    " return smaller numbers or lower its weight"
)


def weighted(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """Return the sums (B,), NaN without any number, or beyond the range of a double."""
    total = _sums(by_function, weights)
    total[~np.isfinite(total)] = np.nan
    return total


def within_range(
    by_function: ByFunction, weights: Sequence[float]
) -> tuple[dict[str, Array], dict[str, dict[int, Failure]]]:
    """Return the rewards without those that make a sum too large, and the latter as failures."""
    kept = {name: values.copy() for name, values in by_function.items()}
    failures: dict[str, dict[int, Failure]] = {name: {} for name in by_function}
    while (too_large := np.flatnonzero(np.isinf(_sums(kept, weights)))).size:
        for index in map(int, too_large):
            name = _largest(kept, weights, index)
            failures[name][index] = Failure(f"returned {kept[name][index]:g}, {_TOO_LARGE}")
            kept[name][index] = np.nan
    return kept, failures


def _sums(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """Return the sums (B,): NaN without any number, ±∞ where the sum or a term overflows."""
    stacked = np.stack(list(by_function.values()))  # (functions, B)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = stacked * np.array(weights)[:, None]
        total: Array = np.nansum(parts, axis=0)
    total[np.isinf(parts).any(axis=0)] = np.inf  # ∞ − ∞ = NaN would look like a missing reward
    total[np.isnan(stacked).all(axis=0)] = np.nan
    return total


def _largest(by_function: ByFunction, weights: Sequence[float], index: int) -> str:
    """Return the function with the largest part in the sum of a completion."""
    rewards = np.array([values[index] for values in by_function.values()])
    with np.errstate(over="ignore"):
        parts = np.abs(rewards * np.array(weights))
    return list(by_function)[int(np.nanargmax(parts))]
