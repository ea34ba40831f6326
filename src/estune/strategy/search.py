"""`learning_rate: auto`: find α for one update by trying sizes before θ moves.

An update of size α gains about (α/σ)·s, where s is the standard deviation of the members' fitness.
The noise in that update costs about ((α/σ)²/N)·D, where D is how far the members' mean reward is
below θ's. The difference is largest at α = σ·N·s/(2D), if moving along the noise of many members
gains what moving along that of each one gains.

No formula tells how nearly that holds, so a size is tried: θ after the update is evaluated like a
member. As in a trust region, half the size is tried too if the update gains less than a quarter of
the predicted gain, and twice the size if it gains more than half. If it loses more than chance
explains, smaller and smaller sizes are tried, and finally no update is made.

σ grows if all members have the same reward and are not below θ. It shrinks if most members computed
no finite numbers, if they are far below θ, or if they are well above it, which means that the
reward favours broken completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from estune import strategy
from estune.common.moments import divided, exponent, known
from estune.common.moments import mean as exact_mean
from estune.config import ESConfig
from estune.strategy.shaping import Fitness, PromptRewards, Rewards
from estune.strategy.step_size import LearnedSize, StepSize

_LEAST = 0.5  # lower bound of the first α/σ that a step tries; the paper's value
_MOST_TRIED = 6  # sizes per step
_POOR = 0.25  # fraction of the predicted gain below which a smaller size is tried
_GOOD = 0.5  # fraction of the predicted gain above which a larger size is tried
_LARGER = 1.2  # a larger size is tried only if it is larger by this factor
_BETTER = 0.5  # another size replaces the first only if better by this many standard errors
_CHANCE = 1.645  # standard errors that an update without effect seems to lose in 1 of 20 cases
_FAR = 2.0  # σ shrinks if the members' mean is more standard deviations than this below θ's
# σ also shrinks if the mean is above θ's by both of these.
_ABOVE = 0.5  # standard deviations
_SURE = 2.5  # standard errors
_BACK = 1.1  # factor by which a σ that shrank grows back per step
_RANGE = 16.0  # factor by which σ may differ from the setting `sigma`


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
        self._population: PopulationRewards | None = None
        if reference is not None:
            unit = strategy.tell(config, fitness, alpha=1.0)
            self._population = PopulationRewards(rewards, unit, reference, finite)

    def next_size(self) -> float | None:
        """The α to try next; None if enough is known, or nothing can be learned."""
        if self._population is None:
            return None
        population, candidates, _ = _in_range(self._population, self._candidates)
        return size_to_try(self._size, population, self._tried, candidates)

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

        `same_prompts`: the next step uses the same prompts, so it need not evaluate θ again.
        """
        if self.learned is None:
            return None
        return self.learned.record(self.new_reference if same_prompts else None)

    @property
    def new_reference(self) -> PromptRewards | None:
        """The rewards (B,) of θ after the update; None with a given learning rate."""
        if self._population is None or self.learned is None:
            return None
        if not self.learned.alpha:
            return self._population.reference
        return self._candidates[self._tried.index(self.learned.alpha)]


@dataclass(frozen=True)
class PopulationRewards:
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
    def mean_rewards(self) -> Fitness:
        """The mean reward of each member (N,), NaN for a member without any."""
        return np.array([_mean(row) for row in self.rewards])

    @property
    def drop(self) -> float:
        """D: how far the members' mean reward is below that of θ."""
        return _mean(self.reference) - _mean(self.mean_rewards)

    def slope(self, sigma: float) -> float:
        """The gain of an update to first order, divided by its size α.

        Assumes that moving θ by a member's σ·ε gains this member's mean reward; for a pair, half
        the difference of the two. A constant makes no difference, as the coefficients sum to 0.
        """
        paired = len(self.mean_rewards) > len(self.unit)
        gains = (
            (self.mean_rewards[0::2] - self.mean_rewards[1::2]) / 2 if paired else self.mean_rewards
        )
        return math.fsum(known(np.array(self.unit) * gains)) / sigma


def size_to_try(
    size: StepSize,
    population: PopulationRewards,
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
    if best(population.reference, candidates) is None:  # none is acceptable
        return min(tried) / 2 if len(tried) < _MOST_TRIED else None
    changes = candidates[0] - population.reference
    if len(tried) > 1 or not known(changes).any():
        return None
    predicted = tried[0] * population.slope(size.sigma)
    if not _mean(changes) >= _POOR * predicted:  # also if the prediction is NaN
        return tried[0] / 2
    larger = min(2 * tried[0], most)
    worth_trying = _mean(changes) > _GOOD * predicted and larger > _LARGER * tried[0]
    return larger if worth_trying else None


def best(reference: PromptRewards, candidates: Sequence[PromptRewards]) -> int | None:
    """The index of the candidate to apply; None if every one loses more than chance explains.

    The first one is kept if it does not lose and no other is better by more than half a standard
    error. So noise alone does not change the size.

    Args:
        reference, candidates: rewards (B,) of θ, and of θ after each size, on the same prompts.
    """
    bearable = [
        i
        for i, rewards in enumerate(candidates)
        if _in_standard_errors(rewards - reference) >= -_CHANCE
    ]
    if not bearable:
        return None
    top = max(bearable, key=lambda i: (_mean(candidates[i] - reference), -i))
    first_gains = 0 in bearable and _mean(candidates[0] - reference) >= 0
    if first_gains and _in_standard_errors(candidates[top] - candidates[0]) <= _BETTER:
        return 0
    return top


def learn(
    config: ESConfig,
    size: StepSize,
    population: PopulationRewards,
    tried: Sequence[float],
    candidates: Sequence[PromptRewards],
    taken: int | None,
) -> LearnedSize:
    """What a step learned. Arguments: see `size_to_try`; `taken` is from `best`."""
    assert size.reach is not None
    alpha = 0.0 if taken is None else tried[taken]
    return LearnedSize(
        alpha=alpha,
        tried=list(tried),
        gains=[_number(_mean(rewards - population.reference)) for rewards in candidates],
        predicted=alpha * population.slope(size.sigma) if alpha else 0.0,
        drop=_number(population.drop),
        # Without an update the next step starts with half the size that was tried first.
        next_alpha=alpha or (tried[0] / 2 if tried else size.alpha),
        next_sigma=_next_sigma(config, size, population),
        reach=size.reach,
    )


def _expected(size: StepSize, population: PopulationRewards) -> float:
    """The previous step's α, or in the first step σ·N·s/(2D); never below σ/2.

    Without this lower bound noise could halve α again and again.
    """
    alpha = size.alpha
    if alpha is None:
        fitness = known(population.mean_rewards)
        spread = float(fitness.std())
        drop = population.drop
        alpha = size.sigma * fitness.size * spread / (2 * drop) if drop > 0 else math.inf
    return max(alpha, size.sigma * _LEAST)


def _next_sigma(config: ESConfig, size: StepSize, population: PopulationRewards) -> float:
    factor = _sigma_factor(population)
    if factor is None:
        sigma = max(size.sigma, min(size.sigma * _BACK, config.sigma))
    else:
        sigma = size.sigma * factor
    return min(max(sigma, config.sigma / _RANGE), config.sigma * _RANGE)


def _sigma_factor(population: PopulationRewards) -> float | None:
    """The factor by which σ should change; None if σ may grow back to the setting.

    1.0 keeps σ, because rewards that were lost say nothing about it.
    """
    fitness = known(population.mean_rewards)
    if 2 * population.finite < len(population.rewards):
        return 0.5  # most members computed no finite numbers
    if fitness.size < 2:
        return 1.0
    drop = population.drop
    if fitness.max() == fitness.min():
        return 0.5 if drop > 0 else 2.0
    spread = float(fitness.std())
    members_above = -drop
    if members_above > spread * max(_ABOVE, _SURE / math.sqrt(fitness.size - 1)):
        return 0.5
    return 0.8 if drop > _FAR * spread else None


def _in_range(
    population: PopulationRewards, candidates: Sequence[PromptRewards]
) -> tuple[PopulationRewards, list[PromptRewards], int]:
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
    """`found` with its figures multiplied by 2**power, which undoes `_in_range`.

    A figure that no double can hold becomes None.
    """

    def scaled(figure: float | None) -> float | None:
        return None if figure is None else _number(float(divided(figure, -power)))

    gains = [scaled(gain) for gain in found.gains]
    predicted, drop = scaled(found.predicted), scaled(found.drop)
    return replace(found, gains=gains, predicted=predicted, drop=drop)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(rewards: PromptRewards) -> float:
    return exact_mean(known(rewards))


def _in_standard_errors(differences: PromptRewards) -> float:
    """The mean of differences (B,) divided by its standard error; −∞ if there are none.

    If all are equal, it is ±∞, or 0 if they are 0.
    """
    present = known(differences)
    if not present.size:
        return -math.inf
    mean = _mean(present)
    if mean == 0:
        return 0.0
    varies = present.max() > present.min()
    error = float(present.std(ddof=1)) / math.sqrt(present.size) if varies else 0.0
    return mean / error if error else math.copysign(math.inf, mean)
