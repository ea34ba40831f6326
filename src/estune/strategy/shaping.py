"""Reward shaping: from the members' fitness Rₙ to the R̃ₙ that weigh their noise in the update.

`reward_shaping` chooses a function of `SHAPING`. How rewards become fitness before that, and
`prompt_shaping`, are in fitness.py.
"""

import math
from collections.abc import Callable

import numpy as np

from estune.config import ESConfig
from estune.strategy.fitness import Fitness


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
