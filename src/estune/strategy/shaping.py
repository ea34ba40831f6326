"""From rewards to fitness Rₙ, and from fitness to the R̃ₙ by which the update multiplies noise.

Fitness is one number per member, by default the mean of its rewards; `prompt_shaping` and `pass_k`
compare members prompt by prompt instead. `reward_shaping` then scales the population's fitness.

All are pure functions of the population's rewards (N, B), NaN where a completion has no reward.
Sums are exact and rounded once, so members with equal rewards get equal fitness, and if all are
equal, θ does not move.
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


# From rewards to fitness


def fitness_of(config: ESConfig, rewards: Rewards) -> Fitness:
    """Each member's fitness (N,) as the config defines it; NaN for a member without any reward."""
    if config.pass_k is not None:
        return pass_at_k(rewards, config.pass_k, config.pass_reward)
    fitness = PROMPT_SHAPING[config.prompt_shaping] if config.prompt_shaping else mean
    return fitness(rewards)


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
    """The mean of `row` − `average` over the prompts that have a reward, as one exact sum."""
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


# From fitness to R̃


def shaped(config: ESConfig, fitness: Fitness) -> Fitness:
    """R̃ (N,): the shaped fitness; 0 for a member without fitness, and all 0 if all are equal.

    Equality is tested on the fitness itself, because rounding can make the deviation of
    equal numbers nonzero. With `reward_shaping: none` a member whose partner has no fitness gets 0
    too, because the partner is its baseline.
    """
    present = ~np.isnan(fitness)
    remaining = fitness[present]
    shaped_fitness = np.zeros_like(fitness)
    if remaining.size and remaining.max() > remaining.min():
        shaped_fitness[present] = SHAPING[config.reward_shaping](remaining)
    if config.reward_shaping == "none":  # needs pairs: members 2n and 2n+1
        whole_pairs = present.reshape(-1, 2).all(axis=1)
        shaped_fitness[np.repeat(~whole_pairs, 2)] = 0
    return shaped_fitness


def z_score(fitness: Fitness) -> Fitness:
    """R̃ = (R − mean(R)) / std(R), with the population standard deviation.

    Dividing by a power of two first keeps squares in range and changes no digit. The mean is
    subtracted twice, because its own rounding matters when all values are nearly equal.
    """
    _, exponent = math.frexp(np.abs(fitness).max())
    centred = np.ldexp(fitness, -exponent)
    for _ in range(2):
        centred = centred - math.fsum(centred) / centred.size
    return centred / math.sqrt(math.fsum(centred**2) / fitness.size)


def centered_rank(fitness: Fitness) -> Fitness:
    """Ranks spread evenly over [−½, ½] (Salimans et al. 2017).

    Members with equal fitness get the mean of their ranks.
    """
    _, group, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2  # per distinct value; ranks start at 0
    return mean_rank[group] / (fitness.size - 1) - 0.5


def none(fitness: Fitness) -> Fitness:
    """R̃ = R.

    With one pair and α = lr/σ, the coefficient of ε is MeZO's lr · (R₊ − R₋) / (2σ)
    (Malladi et al. 2023, https://arxiv.org/abs/2305.17333).
    """
    return fitness


SHAPING: dict[str, Callable[[Fitness], Fitness]] = {
    "z_score": z_score,
    "centered_rank": centered_rank,
    "none": none,
}
