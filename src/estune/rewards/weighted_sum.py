"""The weighted sum of several reward functions' numbers, one per completion.

A sum that a double cannot hold is no reward. It is put down to the function with the largest part in
it, as a call of that function that failed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from estune.rewards.call import Failure

Array = NDArray[np.float64]
ByFunction = Mapping[str, Array]  # name → rewards (B,), NaN where there is none

_BEYOND = "which makes the weighted sum of the rewards larger than a double can be"


def weighted(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """The sums (B,), NaN where no function gave a number or a double cannot hold the sum."""
    total = _sums(by_function, weights)
    total[~np.isfinite(total)] = np.nan
    return total


def within_range(
    by_function: ByFunction, weights: Sequence[float]
) -> tuple[dict[str, Array], dict[str, dict[int, Failure]]]:
    """The rewards without those that make a sum too large, which are failures of their functions."""
    kept = {name: values.copy() for name, values in by_function.items()}
    failures: dict[str, dict[int, Failure]] = {name: {} for name in by_function}
    while (beyond := np.flatnonzero(np.isinf(_sums(kept, weights)))).size:
        for index in map(int, beyond):
            name = _largest(kept, weights, index)
            reason = f"returned {kept[name][index]:g}, {_BEYOND}; return smaller numbers or lower its weight"
            failures[name][index] = Failure(reason)
            kept[name][index] = np.nan
    return kept, failures


def _sums(by_function: ByFunction, weights: Sequence[float]) -> Array:
    """The sums (B,), NaN where there is nothing to sum, ±∞ where the sum or a part of it is too large."""
    stacked = np.stack(list(by_function.values()))  # (functions, B)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = stacked * np.array(weights)[:, None]
        total: Array = np.nansum(parts, axis=0)
    total[np.isinf(parts).any(axis=0)] = np.inf  # ∞ − ∞ would pass for no number
    total[np.isnan(stacked).all(axis=0)] = np.nan
    return total


def _largest(by_function: ByFunction, weights: Sequence[float], index: int) -> str:
    """The function that has the largest part in the sum of a completion."""
    with np.errstate(over="ignore"):
        parts = [
            abs(values[index] * weight)
            for values, weight in zip(by_function.values(), weights, strict=True)
        ]
    return list(by_function)[int(np.nanargmax(parts))]
