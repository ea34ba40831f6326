"""Ask and tell: which seeds make a population, and which update its fitness calls for.

The method is natural evolution strategies without a gradient for σ. The gradient's factor 1/σ is
included in α (Qiu et al. 2026, https://arxiv.org/abs/2509.24372; Wierstra et al. 2014,
https://jmlr.org/papers/v15/wierstra14a.html).
Everything here is a pure function of the config, the step's number and the fitness.
"""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from estune.common.types import Candidate, Member
from estune.config import ESConfig
from estune.noise.seeds import GOLDEN, mix, seed_of
from estune.strategy import schedules
from estune.strategy.shaping import Fitness, shaped

logger = logging.getLogger(__name__)

# The largest Σ|cₙ|. Because |ε| < 8, an update by such coefficients cannot overflow fp32.
_LARGEST_SUM = float(np.finfo(np.float32).max) / 8


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
        step: used only if `alpha` is None.
        alpha: α; default the schedule's α of `step`.
    """
    alpha = schedules.alpha(config, step) if alpha is None else alpha
    shaped_fitness = shaped(config, fitness)
    if not alpha or not shaped_fitness.any():
        return []
    count = int((~np.isnan(fitness)).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        if config.antithetic:
            shaped_fitness = shaped_fitness[0::2] - shaped_fitness[1::2]
        return [float(c) for c in (alpha / count * shaped_fitness).astype(np.float32)]


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
