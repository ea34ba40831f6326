"""`learning_rate: auto`: find α for one update by trying sizes before θ moves.

To first order an update of size α gains (α/σ)·mean(R̃ₙRₙ), which for z-scores is (α/σ)·s, where s
is the standard deviation of the members' fitness. Its random part costs about ((α/σ)²/N)·D, where
D is the mean loss of the members compared with θ. So the best α is near σ·N·s/(2D), if what members
gain adds up.

No formula says how far it does, so a size is tried: θ after the update is evaluated like a
member. As in a trust region, half the size is tried too if it gains less than a quarter of what the
first order promises, and twice the size if it gains more than half. If it loses more than chance
explains, smaller and smaller sizes are tried, and finally no update is made.

σ follows the spread: it grows if members tie, and shrinks if they fall far below θ, or are above θ
only because the reward favours broken completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from estune import strategy
from estune.common.moments import divided, exponent
from estune.common.moments import mean as exact_mean
from estune.config import ESConfig
from estune.strategy.fitness import Fitness, PromptRewards, Rewards
from estune.strategy.step_size import LearnedSize, StepSize

_LEAST = 0.5  # the smallest α/σ to try first: the paper's
_MOST_TRIED = 6  # sizes per step
_POOR = 0.25  # fraction of the promised gain below which a smaller size is tried
_GOOD = 0.5  # fraction of the promised gain above which a larger size is tried
_LARGER = 1.2  # a larger size is tried only if it is larger by this factor
_BETTER = 0.5  # standard errors by which another size has to be better than the expected one
_CHANCE = 1.645  # standard errors that a candidate may lose: one in twenty loses that by chance
_FAR = 2.0  # standard deviations that members may fall below θ on average before σ shrinks
_ABOVE = 0.5  # the same above θ: then the reward favours broken completions
_SURE = 2.5  # σ shrinks only if they are also this many standard errors above θ
_BACK = 1.1  # factor by which a σ that shrank grows back per step
_RANGE = 16.0  # factor by which σ may differ from the given one


class SizeSearch:
    """Finds α for one update.

        search = SizeSearch(config, size, rewards, fitness, reference, finite)
        while (alpha := search.next_size()) is not None:
            search.add(alpha, rewards of θ after an update of size alpha)
        search.alpha, search.learned

    With a given learning rate nothing is tried.

    Args:
        rewards: the population's (N, B).
        fitness: the population's (N,).
        reference: rewards (B,) of θ itself, for `learning_rate: auto`.
        finite: the number of members whose model computed finite numbers.
    """

    def __init__(
        self,
        config: ESConfig,
        size: StepSize,
        rewards: Rewards,
        fitness: Fitness,
        reference: PromptRewards | None,
        finite: int,
    ) -> None:
        self._config = config
        self._size = size
        self._tried: list[float] = []
        self._candidates: list[PromptRewards] = []
        self._population: PopulationGains | None = None
        if reference is not None:
            unit = strategy.tell(config, fitness, alpha=1.0)
            self._population = PopulationGains(rewards, unit, reference, finite)

    def next_size(self) -> float | None:
        """The α to try next; None if enough is known, or nothing can be learned."""
        if self._population is None:
            return None
        population, candidates, _ = _in_range(self._population, self._candidates)
        return next_size(self._size, population, self._tried, candidates)

    def add(self, alpha: float, rewards: PromptRewards) -> None:
        """Take the rewards (B,) of θ after an update of size `alpha`."""
        self._tried.append(alpha)
        self._candidates.append(rewards)

    @property
    def alpha(self) -> float:
        """α of the update to make; 0 if none is to be made."""
        if self.learned is not None:
            return self.learned.alpha
        return self._size.alpha or 0.0

    @cached_property
    def learned(self) -> LearnedSize | None:
        """What the finished search learned; None with a given learning rate."""
        if self._population is None:
            return None
        population, candidates, power = _in_range(self._population, self._candidates)
        taken = best(population.reference, candidates)
        found = learn(self._config, self._size, population, self._tried, candidates, taken)
        return _scaled_up(found, power)

    def record(self, *, same_prompts: bool) -> dict[str, Any] | None:
        """The journal's `control`; None with a given learning rate.

        `same_prompts`: the next step asks the same prompts, so it need not evaluate θ again.
        """
        if self.learned is None:
            return None
        return self.learned.record(self.reference if same_prompts else None)

    @property
    def reference(self) -> PromptRewards | None:
        """The rewards (B,) of θ after the update; None with a given learning rate."""
        if self._population is None or self.learned is None:
            return None
        if not self.learned.alpha:
            return self._population.reference
        return self._candidates[self._tried.index(self.learned.alpha)]


@dataclass(frozen=True)
class PopulationGains:
    """What a population says about the size of its update.

    rewards: the members' (N, B); rows 2n and 2n+1 are a pair if they are antithetic.
    unit: the coefficients of an update of size 1, one per seed; empty if there is nothing to learn.
    reference: rewards (B,) of θ on the same prompts.
    finite: the number of members whose model computed finite numbers.
    """

    rewards: Rewards
    unit: list[float]
    reference: PromptRewards
    finite: int

    @cached_property
    def fitness(self) -> Fitness:
        """The mean reward of each member (N,), NaN for a member without any."""
        return np.array([_mean(row) for row in self.rewards])

    @property
    def drop(self) -> float:
        """D: how far the members' mean reward is below that of θ."""
        return _mean(self.reference) - _mean(self.fitness)

    def slope(self, sigma: float) -> float:
        """The gain of an update to first order, divided by its size α.

        A move by σ·ε gains that member's fitness, or half the difference of a pair's.
        """
        paired = len(self.fitness) > len(self.unit)
        gains = (self.fitness[0::2] - self.fitness[1::2]) / 2 if paired else self.fitness
        return math.fsum(_present(np.array(self.unit) * gains)) / sigma


def next_size(
    size: StepSize,
    population: PopulationGains,
    tried: Sequence[float],
    candidates: Sequence[PromptRewards],
) -> float | None:
    """The α to try next, the expected one first; None if there is nothing more to learn.

    Args:
        candidates: rewards (B,) of θ after an update of each size in `tried`.
    """
    if not any(population.unit) or np.isnan(population.reference).all():
        return None
    assert size.reach is not None
    most = size.reach / math.hypot(*population.unit)
    if not tried:
        return min(_expected(size, population), most)
    if best(population.reference, candidates) is None:
        return min(tried) / 2 if len(tried) < _MOST_TRIED else None
    changes = candidates[0] - population.reference
    if len(tried) > 1 or not _present(changes).any():
        return None
    promised = tried[0] * population.slope(size.sigma)
    if not _mean(changes) >= _POOR * promised:
        return tried[0] / 2
    larger = min(2 * tried[0], most)
    worth_trying = _mean(changes) > _GOOD * promised and larger > _LARGER * tried[0]
    return larger if worth_trying else None


def best(reference: PromptRewards, candidates: Sequence[PromptRewards]) -> int | None:
    """The index of the candidate to apply; None if every one loses more than chance explains.

    The first one, of the expected size, is kept unless it loses or another is better by half a
    standard error. So the size stays if the rewards cannot tell sizes apart.

    Args:
        reference, candidates: rewards (B,) of θ, and of θ after each size, on the same prompts.
    """
    bearable = [
        i for i, rewards in enumerate(candidates) if _score(rewards - reference) >= -_CHANCE
    ]
    if not bearable:
        return None
    top = max(bearable, key=lambda i: (_mean(candidates[i] - reference), -i))
    gains = 0 in bearable and _mean(candidates[0] - reference) >= 0
    return 0 if gains and _score(candidates[top] - candidates[0]) <= _BETTER else top


def learn(
    config: ESConfig,
    size: StepSize,
    population: PopulationGains,
    tried: Sequence[float],
    candidates: Sequence[PromptRewards],
    taken: int | None,
) -> LearnedSize:
    """What a step learned. Arguments are those of `next_size`; `taken` is the result of `best`."""
    assert size.reach is not None
    alpha = 0.0 if taken is None else tried[taken]
    return LearnedSize(
        alpha=alpha,
        tried=list(tried),
        gains=[_number(_mean(rewards - population.reference)) for rewards in candidates],
        predicted=alpha * population.slope(size.sigma) if alpha else 0.0,
        drop=_number(population.drop),
        next_alpha=alpha or (tried[0] / 2 if tried else size.alpha),
        next_sigma=_next_sigma(config, size, population),
        reach=size.reach,
    )


def _expected(size: StepSize, population: PopulationGains) -> float:
    """The previous step's α, or the best one on a quadratic, but at least the paper's.

    Without this lower bound noise could keep halving it.
    """
    alpha = size.alpha
    if alpha is None:
        fitness = _present(population.fitness)
        spread = float(fitness.std())
        drop = population.drop
        alpha = size.sigma * fitness.size * spread / (2 * drop) if drop > 0 else math.inf
    return max(alpha, size.sigma * _LEAST)


def _next_sigma(config: ESConfig, size: StepSize, population: PopulationGains) -> float:
    factor = _sigma_factor(population)
    if factor is None:
        sigma = max(size.sigma, min(size.sigma * _BACK, config.sigma))
    else:
        sigma = size.sigma * factor
    return min(max(sigma, config.sigma / _RANGE), config.sigma * _RANGE)


def _sigma_factor(population: PopulationGains) -> float | None:
    """By how much σ should change; None if nothing is wrong with it."""
    fitness = _present(population.fitness)
    if 2 * population.finite < len(population.rewards):
        return 0.5  # most members computed no finite numbers
    if fitness.size < 2:
        return 1.0  # rewards were lost, which says nothing about σ
    drop = population.drop
    if fitness.max() == fitness.min():
        return 0.5 if drop > 0 else 2.0
    spread = float(fitness.std())
    if drop < -spread * max(_ABOVE, _SURE / math.sqrt(fitness.size - 1)):
        return 0.5
    return 0.8 if drop > _FAR * spread else None


def _in_range(
    population: PopulationGains, candidates: Sequence[PromptRewards]
) -> tuple[PopulationGains, list[PromptRewards], int]:
    """The rewards divided by 2**power, so that their squares fit into doubles, and the power."""
    power = exponent(population.rewards, population.reference, *candidates)
    if not power:
        return population, list(candidates), 0
    smaller = replace(
        population,
        rewards=divided(population.rewards, power),
        reference=divided(population.reference, power),
    )
    return smaller, [divided(candidate, power) for candidate in candidates], power


def _scaled_up(found: LearnedSize, power: int) -> LearnedSize:
    """`found` for rewards that are 2**power larger; None for a figure that no double can hold."""

    def scaled(figure: float | None) -> float | None:
        return None if figure is None else _number(float(divided(figure, -power)))

    gains = [scaled(gain) for gain in found.gains]
    predicted, drop = scaled(found.predicted), scaled(found.drop)
    return replace(found, gains=gains, predicted=predicted, drop=drop)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _present(rewards: PromptRewards) -> PromptRewards:
    present: PromptRewards = rewards[~np.isnan(rewards)]
    return present


def _mean(rewards: PromptRewards) -> float:
    return exact_mean(_present(rewards))


def _score(differences: PromptRewards) -> float:
    """The mean of differences (B,) in standard errors; ±∞ if all are equal, −∞ for none."""
    present = _present(differences)
    if not present.size:
        return -math.inf
    mean = _mean(present)
    if mean == 0:
        return 0.0
    varies = present.max() > present.min()
    error = float(present.std(ddof=1)) / math.sqrt(present.size) if varies else 0.0
    return mean / error if error else math.copysign(math.inf, mean)
