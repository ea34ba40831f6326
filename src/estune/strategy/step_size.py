"""The σ and α of a step: scheduled, or with `learning_rate: auto` learned by earlier steps.

Each step passes α to the next, not α/σ. If the reward is quadratic in θ, the spread of the fitness
grows with σ and the members' drop in reward with σ², so σ cancels in the best α. How a step finds
its α is in search.py.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from estune.config import ESConfig
from estune.errors import ConfigError
from estune.strategy import schedules
from estune.strategy.shaping import PromptRewards

_REACH = 0.04  # the largest RMS change in one update, as a fraction of the weights' RMS


@dataclass(frozen=True)
class StepSize:
    """What a step starts with.

    sigma: σ of its members.
    alpha: α of its update; None if the population has to suggest one.
    reach: with `learning_rate: auto`, the largest RMS change of the weights.
    reference: rewards (B,) of θ itself on the step's prompts, if the previous step measured them.
    """

    sigma: float
    alpha: float | None
    reach: float | None = None
    reference: PromptRewards | None = None

    @property
    def auto(self) -> bool:
        """Whether sizes are tried before θ moves."""
        return self.reach is not None

    @property
    def needs_reference(self) -> bool:
        """Whether θ itself has to be evaluated with the members."""
        return self.auto and self.reference is None


@dataclass(frozen=True)
class LearnedSize:
    """What a step learned about its size: the journal's `control`, with which the next one starts.

    alpha: α of the update that was made; 0 if none was.
    tried, gains: each α that was tried, and how much it changed θ's mean reward (None: unknown).
    predicted: the gain of `alpha` expected to first order.
    drop: mean reward of θ minus the members' mean.
    next_alpha, next_sigma: what the next step starts with.
    reach: as in `StepSize`.
    """

    alpha: float
    tried: list[float]
    gains: list[float | None]
    predicted: float | None
    drop: float | None
    next_alpha: float | None
    next_sigma: float
    reach: float

    @property
    def gain(self) -> float:
        """How much the update gained on the prompts of its own step."""
        if not self.alpha:
            return 0.0
        gain = self.gains[self.tried.index(self.alpha)]
        return gain or 0.0

    def record(self, reference: PromptRewards | None) -> dict[str, Any]:
        """The journal's `control`, with the new θ's rewards if the next step can use them."""
        fields = asdict(self)
        if reference is not None:
            # `center` is the older name of the reference rewards.
            fields["center"] = [None if math.isnan(r) else float(r) for r in reference]
        return {name: value for name, value in fields.items() if value is not None}


def begin(
    config: ESConfig,
    step: int,
    learned: dict[str, Any] | None,
    root_mean_square: Callable[[], float],
) -> StepSize:
    """The size with which `step` starts.

    Args:
        learned: the `control` of the previous step's journal line, if it has one.
        root_mean_square: returns the RMS of θ₀'s weights.

    Raises:
        ConfigError: `learning_rate: auto`, and all tuned weights are zero.
    """
    if config.learning_rate != "auto":
        return StepSize(schedules.sigma(config, step), schedules.alpha(config, step))
    if learned:
        sigma, alpha = learned["next_sigma"], learned.get("next_alpha")
        return StepSize(sigma, alpha, learned["reach"], _reference(learned))
    # One update changes the weights by a small fraction of their RMS at most, because moving θ far
    # costs abilities that the reward does not measure. Trust ratios limit gradient steps in the
    # same way (You et al. 2017, https://arxiv.org/abs/1708.03888). Rounded, because the last digits
    # vary by processor.
    reach = float(f"{_REACH * root_mean_square():.3g}")
    if not reach:
        raise ConfigError(
            "learning_rate: auto measures steps by the size of the weights, "
            "and all tuned weights are zero; give a number"
        )
    return StepSize(config.sigma, None, reach)


def _reference(learned: dict[str, Any]) -> PromptRewards | None:
    """The rewards of θ that the previous step recorded; None if there are none."""
    values = learned.get("center") or []
    if all(value is None for value in values):
        return None
    return np.array([math.nan if value is None else value for value in values])
