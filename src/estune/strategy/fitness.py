"""Fitness: one number per member from its rewards, by default their mean.

Other kinds compare members prompt by prompt. All are pure functions of the population's rewards
(N, B), NaN where a completion has no reward. Sums are exact and rounded once, so members with equal
rewards get equal fitness, and if all are equal, θ does not move. What the update does with the
fitness (`reward_shaping`) is in shaping.py.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import LARGEST, divided, exponent, known
from estune.common.moments import mean as exact_mean
from estune.config import ESConfig

Rewards = NDArray[np.float64]  # (N, B), NaN where a completion has no reward
PromptRewards = NDArray[np.float64]  # (B,), the rewards of one member
Fitness = NDArray[np.float64]  # (N,), NaN for a member that is left out


def fitness_of(config: ESConfig, rewards: Rewards) -> Fitness:
    """Each member's fitness (N,) as the config defines it; NaN for a member without any reward."""
    if config.pass_k is not None:
        return pass_at_k(rewards, config.pass_k, config.pass_reward)
    shape = PROMPT_SHAPING[config.prompt_shaping] if config.prompt_shaping else mean
    return shape(rewards)


def mean(rewards: Rewards) -> Fitness:
    """The mean over the completions that have a reward."""
    return np.array([exact_mean(known(row)) for row in rewards])


def centered(rewards: Rewards) -> Fitness:
    """The mean over b of R(n,b) − R̄(b), where R̄(b) is the mean over members.

    If every member has a reward for every prompt, this shifts all fitness by the same amount and
    changes nothing. It matters when rewards are missing: a member that lacks the rewards of hard
    prompts no longer looks better for it.
    """
    average = _per_prompt(rewards, exact_mean)
    fitness = np.array([_mean_difference(row, average) for row in rewards])
    clipped: Fitness = np.clip(fitness, -LARGEST, LARGEST)  # differences of doubles may overflow
    return clipped


def _mean_difference(row: PromptRewards, average: PromptRewards) -> float:
    present = ~np.isnan(row)
    terms = np.concatenate([row[present], -average[present]])
    return exact_mean(terms, int(present.sum()))


def standardized(rewards: Rewards) -> Fitness:
    """Like `centered`, with each prompt's rewards divided by their standard deviation.

    The scale of a prompt's rewards then no longer matters, as in GRPO (Shao et al. 2024,
    https://arxiv.org/abs/2402.03300). As a side effect, prompts that nearly all or nearly no
    members solve weigh more, because their deviation is small (Liu et al. 2025,
    https://arxiv.org/abs/2503.20783).
    """
    columns = [divided(column, exponent(column)) for column in rewards.T]  # avoids overflow
    rewards = np.stack(columns, axis=1)
    average = _per_prompt(rewards, exact_mean)
    spread = _per_prompt(rewards, _deviation)
    with np.errstate(divide="ignore", invalid="ignore"):
        shaped = np.where(spread == 0, 0.0, (rewards - average) / spread)
    shaped[np.isnan(rewards)] = np.nan
    return mean(shaped)


PROMPT_SHAPING: dict[str, Callable[[Rewards], Fitness]] = {
    "center": centered,
    "standardize": standardized,
}


def pass_at_k(rewards: Rewards, k: int, passing: float) -> Fitness:
    """What each member adds to the population's pass@k, as a mean over prompts.

    A completion passes if its reward is at least `passing`; n is the number of completions of a
    prompt, one per member. The fitness is pass@k with the member minus pass@k without it: the
    leave-one-out estimator of Walder & Karkhanis (2025, https://arxiv.org/abs/2505.15201), with
    members instead of samples. Prompts with n ≤ k are ignored.
    """
    present = ~np.isnan(rewards)
    passes = present & (np.nan_to_num(rewards, nan=-np.inf) >= passing)
    n = present.sum(axis=0)  # (B,)
    c = passes.sum(axis=0)  # (B,)
    fitness = np.full(len(rewards), np.nan)
    for member, usable in enumerate(present & (n > k)):
        cases = zip(n[usable], c[usable], passes[member][usable], strict=True)
        if usable.any():
            fitness[member] = _mean_contribution(cases, k)
    return fitness


def _mean_contribution(cases: Iterable[tuple[int, int, bool]], k: int) -> float:
    """The mean of `_contribution` over (n, c, passes) of each prompt."""
    counts = Counter((int(n), int(c), bool(passes)) for n, c, passes in cases)
    total = sum(count * _contribution(*case, k) for case, count in counts.items())
    return float(total / counts.total())


@lru_cache(maxsize=1 << 16)
def _contribution(n: int, c: int, passes: bool, k: int) -> Fraction:
    """pass@k of n completions, c of which pass, minus pass@k without one of them.

    `passes` says whether that one passes.
    """
    return pass_chance(n, c, k) - pass_chance(n - 1, c - passes, k)


def pass_chance(n: int, c: int, k: int) -> Fraction:
    """pass@k of n completions, c of which pass: 1 − C(n−c, k) / C(n, k).

    This is the unbiased chance that one of k completions passes (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374, eq. 1).
    """
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


def _per_prompt(rewards: Rewards, statistic: Callable[[PromptRewards], float]) -> PromptRewards:
    """A statistic of each prompt's rewards (B,); NaN for a prompt without rewards."""
    columns = map(known, rewards.T)
    return np.array([statistic(column) if column.size else math.nan for column in columns])


def _deviation(values: NDArray[np.float64]) -> float:
    """The population standard deviation; exactly 0 when all values are equal."""
    if values.max() == values.min():
        return 0.0
    average = exact_mean(values)
    return math.sqrt(math.fsum((values - average) ** 2) / values.size)
