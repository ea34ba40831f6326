"""One step's search: the population, and with `learning_rate: auto` the sizes of update that are tried before one is made."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from estune import strategy
from estune.common.moments import mean
from estune.common.types import Candidate, Unperturbed, Variant
from estune.config import ESConfig
from estune.strategy import step_size
from estune.strategy.fitness import Fitness, fitness_of
from estune.strategy.population import Scored
from estune.strategy.step_size import Control, Plan, PromptRewards, Told, Totals

logger = logging.getLogger(__name__)
_LARGEST = float(np.finfo(np.float32).max) / 8  # Σ|cₙ| of an update: no ε is larger than 8
Evaluate = Callable[
    [Sequence[Variant]], list[Scored]
]  # evaluates some more; returns all that this step has, in their order


@dataclass(frozen=True)
class Found:
    """What a step's evaluations came to.

    members, others: the population's, and those of the centre and of candidates.
    coefficients: of the update, one a seed; empty when nothing is to be moved.
    control, center: with `learning_rate: auto`, what was learned of the size, and the rewards (B,) of the centre to be.
    """

    members: list[Scored]
    others: list[Scored]
    totals: Totals  # (N, B)
    fitness: Fitness  # (N,)
    coefficients: list[float]
    control: Control | None = None
    center: PromptRewards | None = None

    def record(self, *, same_prompts: bool) -> dict[str, Any] | None:
        """What of it the journal keeps for the next step, which may ask the same prompts."""
        return (
            step_size.recorded(self.control, self.center if same_prompts else None)
            if self.control
            else None
        )

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures of the size that was found."""
        if self.control is None:
            return {}
        return {
            "learning_rate": self.control.alpha,
            "es/gain": self.control.gain,
            "es/gain_predicted": self.control.predicted,
            "es/center_reward": None
            if self.center is None or np.isnan(self.center).all()
            else mean(self.center[~np.isnan(self.center)]),
            "es/drop": self.control.drop,
            "es/refused": int(bool(self.control.tried) and not self.control.alpha),
        }


def search(
    config: ESConfig,
    step: int,
    plan: Plan,
    seeds: list[int],
    center: PromptRewards | None,
    evaluate: Evaluate,
) -> Found:
    """Evaluate the population of `step`, then find the update. `center` are θ's rewards (B,), where they are known already."""
    members = strategy.members(config, step, seeds, plan.sigma)
    auto = config.learning_rate == "auto"
    ask_center = auto and center is None
    scored = evaluate(members + ([Unperturbed(step - 1)] if ask_center else []))
    count, first = len(members), len(scored)
    population = scored[:count]
    totals = np.stack([one.scores.total for one in population])
    fitness = fitness_of(config, totals)
    if not auto:
        return Found(
            population, [], totals, fitness, _bounded(step, strategy.tell(config, fitness, step))
        )
    center = scored[count].scores.total if center is None else center
    unit = strategy.tell(config, fitness, alpha=1.0)
    told = Told(totals, unit, center, sum(member.finite for member in population))
    tried: list[float] = []
    candidates: list[PromptRewards] = []
    while (size := step_size.next_size(plan, *_sizes(told, tried, candidates))) is not None:
        coefficients = strategy.tell(config, fitness, alpha=size)
        scored = evaluate([Candidate(tuple(seeds), tuple(coefficients), config.noise, step - 1)])
        tried.append(size)
        candidates = [one.scores.total for one in scored[first:]]
    smaller, compared, power = step_size.comparable(told, candidates)
    taken = step_size.best(smaller.center, compared)
    learned = step_size.times(
        step_size.learned(config, plan, smaller, tried, compared, taken), power
    )
    made = strategy.tell(config, fitness, alpha=learned.alpha) if learned.alpha else []
    return Found(
        population,
        scored[count:],
        totals,
        fitness,
        made,
        learned,
        center if taken is None else candidates[taken],
    )


def _sizes(
    told: Told, tried: list[float], candidates: list[PromptRewards]
) -> tuple[Told, list[float], list[PromptRewards]]:
    smaller, compared, _ = step_size.comparable(told, candidates)
    return smaller, tried, compared


def _bounded(step: int, coefficients: list[float]) -> list[float]:
    """The coefficients, or none where an update by them could be more than fp32 holds: θ would be infinite from then on."""
    if math.fsum(map(abs, coefficients)) <= _LARGEST:
        return coefficients
    logger.warning(
        "step %d: its rewards and learning_rate make an update larger than fp32 holds, so θ stays; make them smaller",
        step,
    )
    return []
