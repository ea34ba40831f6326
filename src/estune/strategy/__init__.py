"""Ask and tell: which seeds make a population, and how its fitness becomes the coefficients of an update.

Pure numpy, without state, model or I/O: a step is a function of the config, the step's number and the fitness.
The method is natural evolution strategies with a fixed σ, its 1/σ folded into α (Qiu et al.,
https://arxiv.org/abs/2509.24372; Wierstra et al. 2014, https://jmlr.org/papers/v15/wierstra14a.html).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from estune.common.types import Member
from estune.config import ESConfig
from estune.noise.seeds import GOLDEN, mix, seed_of
from estune.strategy import schedules

Fitness = NDArray[np.float64]  # (N,), NaN for a member that is left out


def ask(config: ESConfig, step: int) -> list[int]:
    """The seeds of `step`: one a member, or one a pair when antithetic."""
    count = config.population_size // 2 if config.antithetic else config.population_size
    return [seed_of(config.seed, step, n) for n in range(count)]


def members(
    config: ESConfig, step: int, seeds: Sequence[int], sigma: float | None = None
) -> list[Member]:
    """The population of `step` in order; an antithetic pair shares a seed, + before −. σ is the schedule's unless given."""
    signs = (1, -1) if config.antithetic else (1,)
    sigma = schedules.sigma(config, step) if sigma is None else sigma
    return [Member(seed, sign, sigma, config.noise, step - 1) for seed in seeds for sign in signs]


def tell(
    config: ESConfig, fitness: Fitness, step: int = 1, alpha: float | None = None
) -> list[float]:
    """The coefficients cₙ = fp32(α/N · R̃ₙ) of `step`, one a seed, which multiply ε; empty when there is nothing to learn.

    N and R̃ are over the members that have a fitness; one without (NaN) gets 0. A pair's coefficient is
    fp32(α/N · (R̃₊ − R̃₋)), ±∞ where that is too large. α is the schedule's unless given.
    """
    weights = shaped(config, fitness)
    if not weights.any():
        return []
    alpha = schedules.alpha(config, step) if alpha is None else alpha
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # with reward_shaping none rewards may be too large for fp32
        if config.antithetic:
            weights = weights[0::2] - weights[1::2]
        return [
            float(c) for c in (alpha / int((~np.isnan(fitness)).sum()) * weights).astype(np.float32)
        ]


def shaped(config: ESConfig, fitness: Fitness) -> Fitness:
    """R̃ (N,), 0 for members without fitness, and for all when there is nothing to learn.

    Highest = lowest means that: it is tested on the fitness itself, since the deviation of thirty equal numbers need
    not round to zero. With reward_shaping none R̃ = R, and half a pair gets 0 too, since it has no baseline.
    """
    present, weights = ~np.isnan(fitness), np.zeros_like(fitness)
    remaining = fitness[present]
    if remaining.size and remaining.max() > remaining.min():
        weights[present] = SHAPING[config.reward_shaping](remaining)
    if config.reward_shaping == "none":
        weights[np.repeat(~present.reshape(-1, 2).all(1), 2)] = 0
    return weights


def z_score(fitness: Fitness) -> Fitness:
    """R̃ = (R − mean) / population standard deviation.

    A power of two first brings the largest to order one, so that no square over- or underflows: it changes no digit.
    The mean is taken off twice: its own rounding counts where all are nearly equal.
    """
    _, exponent = math.frexp(np.abs(fitness).max())
    centred = np.ldexp(fitness, -exponent)
    for _ in range(2):
        centred = centred - math.fsum(centred) / centred.size
    return centred / math.sqrt(math.fsum(centred**2) / fitness.size)


def centered_rank(fitness: Fitness) -> Fitness:
    """Ranks spread evenly over [−½, ½], equal fitness sharing its mean rank (Salimans et al. 2017)."""
    _, group, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts + 1) / 2  # of each distinct value, from 0
    return mean_rank[group] / (fitness.size - 1) - 0.5


def none(fitness: Fitness) -> Fitness:
    """R̃ = R. Of one pair, α/N · (R₊ − R₋) with α = lr/σ is the step lr · (R₊ − R₋)/2σ of MeZO (Malladi et al. 2023,
    https://arxiv.org/abs/2305.17333)."""
    return fitness


SHAPING: dict[str, Callable[[Fitness], Fitness]] = {
    "z_score": z_score,
    "centered_rank": centered_rank,
    "none": none,
}


def batch(config: ESConfig, step: int, rows: int) -> list[int]:
    """Which of `rows` prompts every member of `step` answers: consecutive parts of one shuffle an epoch."""
    size = rows if config.batch_size is None else min(config.batch_size, rows)
    if size == rows:
        return list(range(rows))
    first = (step - 1) * size
    return [_shuffled(config.seed, i // rows, rows)[i % rows] for i in range(first, first + size)]


@lru_cache(maxsize=2)  # a batch may reach into a second epoch
def _shuffled(seed: int, epoch: int, rows: int) -> tuple[int, ...]:
    start = mix(mix(seed ^ GOLDEN) + epoch)
    return tuple(sorted(range(rows), key=lambda i: mix(start + i)))
