"""Ask and tell: which seeds make a population, and which update its fitness calls for.

Natural evolution strategies with a fixed σ, whose 1/σ is folded into α (Qiu et al. 2026,
https://arxiv.org/abs/2509.24372; Wierstra et al. 2014, https://jmlr.org/papers/v15/wierstra14a.html).
Everything here is a pure function of the config, the step's number and the fitness.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from estune.common.types import Candidate, Member
from estune.config import ESConfig
from estune.noise.seeds import GOLDEN, mix, seed_of
from estune.strategy import schedules
from estune.strategy.fitness import Fitness

logger = logging.getLogger(__name__)

_LARGEST_SUM = (
    float(np.finfo(np.float32).max) / 8
)  # of |cₙ|, with which no update overflows, as |ε| < 8


def ask(config: ESConfig, step: int) -> list[int]:
    """The seeds of `step`: one per member, or one per pair when antithetic."""
    count = config.population_size // 2 if config.antithetic else config.population_size
    return [seed_of(config.seed, step, n) for n in range(count)]


def members(
    config: ESConfig, step: int, seeds: Sequence[int], sigma: float | None = None
) -> list[Member]:
    """The population of `step`, in order; the members of an antithetic pair are θ + σε, θ − σε.

    `sigma` defaults to the schedule's σ.
    """
    sigma = schedules.sigma(config, step) if sigma is None else sigma
    signs = (1, -1) if config.antithetic else (1,)
    return [
        Member(seed, sign, sigma, config.noise, version=step - 1)
        for seed in seeds
        for sign in signs
    ]


def tell(
    config: ESConfig, fitness: Fitness, step: int = 1, alpha: float | None = None
) -> list[float]:
    """The coefficients cₙ = fp32(α/N · R̃ₙ), one per seed; [] if there is nothing to learn.

    N counts the members that have a fitness; a member without one (NaN) gets 0. An antithetic
    pair gets fp32(α/N · (R̃₊ − R̃₋)). A coefficient too large for fp32 becomes ±∞ (see `bounded`).

    Args:
        fitness: R (N,).
        alpha: α; default the schedule's α of `step`.
    """
    alpha = schedules.alpha(config, step) if alpha is None else alpha
    weights = shaped(config, fitness)
    if not alpha or not weights.any():
        return []
    count = int((~np.isnan(fitness)).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        if config.antithetic:
            weights = weights[0::2] - weights[1::2]
        return [float(c) for c in (alpha / count * weights).astype(np.float32)]


def bounded(step: int, coefficients: list[float]) -> list[float]:
    """The coefficients, or [] if an update by them could overflow fp32 and ruin θ."""
    if math.fsum(map(abs, coefficients)) <= _LARGEST_SUM:
        return coefficients
    logger.warning(
        "step %d: the update would overflow fp32, so θ stays as it is; "
        "make the rewards or learning_rate smaller",
        step,
    )
    return []


def candidate(
    config: ESConfig, step: int, seeds: Sequence[int], fitness: Fitness, alpha: float
) -> Candidate:
    """What θ would be after an update of size `alpha`."""
    coefficients = tell(config, fitness, alpha=alpha)
    return Candidate(tuple(seeds), tuple(coefficients), config.noise, version=step - 1)


def shaped(config: ESConfig, fitness: Fitness) -> Fitness:
    """R̃ (N,): the shaped fitness; 0 for a member without fitness, and all 0 if all are equal.

    Equality is tested on the fitness itself, because the deviation of thirty equal numbers may
    not round to zero. With `reward_shaping: none` a member whose partner has no fitness gets 0
    too, because the partner is its baseline.
    """
    present = ~np.isnan(fitness)
    remaining = fitness[present]
    weights = np.zeros_like(fitness)
    if remaining.size and remaining.max() > remaining.min():
        weights[present] = SHAPING[config.reward_shaping](remaining)
    if config.reward_shaping == "none":
        whole_pairs = present.reshape(-1, 2).all(axis=1)
        weights[np.repeat(~whole_pairs, 2)] = 0
    return weights


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
    """Ranks spread evenly over [−½, ½]; equal fitness shares a mean rank (Salimans et al. 2017)."""
    _, group, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2  # of each distinct value, from 0
    return mean_rank[group] / (fitness.size - 1) - 0.5


def none(fitness: Fitness) -> Fitness:
    """R̃ = R. With one pair and α = lr/σ this is MeZO's step lr · (R₊ − R₋)/2σ (Malladi et al.
    2023, https://arxiv.org/abs/2305.17333)."""
    return fitness


SHAPING: dict[str, Callable[[Fitness], Fitness]] = {
    "z_score": z_score,
    "centered_rank": centered_rank,
    "none": none,
}


def batch(config: ESConfig, step: int, rows: int) -> list[int]:
    """Indices of the rows that all members of `step` get: the next part of the epoch's shuffle."""
    size = rows if config.batch_size is None else min(config.batch_size, rows)
    if size == rows:
        return list(range(rows))
    first = (step - 1) * size
    return [_shuffled(config.seed, i // rows, rows)[i % rows] for i in range(first, first + size)]


@lru_cache(maxsize=2)  # a batch may reach into a second epoch
def _shuffled(seed: int, epoch: int, rows: int) -> tuple[int, ...]:
    start = mix(mix(seed ^ GOLDEN) + epoch)
    return tuple(sorted(range(rows), key=lambda i: mix(start + i)))
