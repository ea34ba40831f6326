"""From what completions earned to one fitness a member: the mean, or shapings of it that compare members prompt by prompt.

Pure functions of the population's rewards (N, B): one row a member, one column a prompt, NaN where there is no reward.
Sums are exact before they are rounded once, so that members that are equal stay equal: then there is no update.
"""

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import LARGEST, divided, exponent
from estune.common.moments import mean as exact_mean
from estune.config import ESConfig

Totals = NDArray[np.float64]  # (N, B), NaN where a completion has no reward
Fitness = NDArray[np.float64]  # (N,), NaN for a member that is left out


def fitness_of(config: ESConfig, totals: Totals) -> Fitness:
    """Each member's fitness (N,), as `pass_k` and `prompt_shaping` say; NaN for one without any reward."""
    if config.pass_k is not None:
        return pass_at_k(totals, config.pass_k, config.pass_reward)
    shape = PROMPT_SHAPING[config.prompt_shaping] if config.prompt_shaping else mean
    return shape(totals)


def mean(totals: Totals) -> Fitness:
    """The mean over the completions that got a number."""
    return np.array([exact_mean(row[~np.isnan(row)]) for row in totals])


def centered(totals: Totals) -> Fitness:
    """The mean of R(n,b) − mean of R(·,b): what a member earned beyond what the population earned on the same prompts.

    Where every member has a reward for every prompt this shifts all fitness alike, so that z-scores and ranks stay as
    they are. It matters where rewards are missing: a member is no longer favoured for lacking the hard prompts.
    """
    average = _of_columns(totals, exact_mean)
    rows = [
        (row[there], average[there]) for row, there in zip(totals, ~np.isnan(totals), strict=True)
    ]
    differences = np.array(
        [exact_mean(np.concatenate([own, -others]), own.size) for own, others in rows]
    )
    fitness: Fitness = np.clip(
        differences, -LARGEST, LARGEST
    )  # 1.7e308 can lie further from a mean than a double reaches
    return fitness


def standardized(totals: Totals) -> Fitness:
    """As `centered`, each prompt divided by its standard deviation over the population; 0 where all earn the same.

    Every prompt then weighs alike whatever its scale, as in GRPO (Shao et al. 2024, https://arxiv.org/abs/2402.03300); so
    prompts that nearly all or nearly none solve weigh more than in the mean (Liu et al. 2025, https://arxiv.org/abs/2503.20783).
    """
    totals = np.stack(
        [divided(column, exponent(column)) for column in totals.T], axis=1
    )  # a column's scale does not matter
    average = _of_columns(totals, exact_mean)
    spread = _of_columns(totals, _deviation)
    with np.errstate(divide="ignore", invalid="ignore"):
        shaped = np.where(spread == 0, 0.0, (totals - average) / spread)
    shaped[np.isnan(totals)] = np.nan
    return mean(shaped)


PROMPT_SHAPING: dict[str, Callable[[Totals], Fitness]] = {
    "center": centered,
    "standardize": standardized,
}


def pass_at_k(totals: Totals, k: int, passing: float) -> Fitness:
    """What each member adds to the population's pass@k: the mean over prompts of pass@k with it minus without it.

    A completion passes with a reward of at least `passing`. Of n completions of a prompt, one a member, c pass:
    pass@k = 1 − C(n−c,k)/C(n,k), unbiased (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1). The difference is
    k/n · (mean over the k-subsets with the member of whether one passes − the same over those without it), which is
    the unbiased estimator of the gradient of pass@k with a leave-one-out baseline (Walder & Karkhanis 2025,
    https://arxiv.org/abs/2505.15201), with members in the place of samples. A prompt with n ≤ k tells nothing.
    """
    there = ~np.isnan(totals)
    passes = there & (np.nan_to_num(totals, nan=-np.inf) >= passing)
    sizes, counts = there.sum(axis=0), passes.sum(axis=0)
    fitness = np.full(len(totals), np.nan)
    for member in range(len(totals)):
        told = there[member] & (sizes > k)
        kinds = Counter(
            zip(
                sizes[told].tolist(),
                counts[told].tolist(),
                passes[member][told].tolist(),
                strict=True,
            )
        )
        if kinds:
            fitness[member] = float(
                sum(times * _marginal(*kind, k) for kind, times in kinds.items()) / int(told.sum())
            )
    return fitness


@lru_cache(maxsize=1 << 16)
def _marginal(n: int, c: int, passes: bool, k: int) -> Fraction:
    """pass@k of n completions of which c pass, minus that without one of them, which `passes` or does not."""
    return pass_chance(n, c, k) - pass_chance(n - 1, c - passes, k)


def pass_chance(n: int, c: int, k: int) -> Fraction:
    """Return pass@k of n completions of which c pass: 1 − C(n−c, k) ÷ C(n, k).

    It is the unbiased chance that one of k completions passes (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374, eq. 1).
    """
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


def _of_columns(
    totals: Totals, statistic: Callable[[NDArray[np.float64]], float]
) -> NDArray[np.float64]:
    """A number for each prompt (B,) from the rewards that it got; NaN where it got none."""
    columns = [column[~np.isnan(column)] for column in totals.T]
    return np.array([statistic(column) if column.size else math.nan for column in columns])


def _deviation(column: NDArray[np.float64]) -> float:
    """The population standard deviation; exactly 0 when all are equal, which its rounding need not give."""
    if column.max() == column.min():
        return 0.0
    average = exact_mean(column)
    return math.sqrt(math.fsum((column - average) ** 2) / column.size)
