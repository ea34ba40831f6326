"""α, σ and the weight decay of each step, as functions of the config and the step's number.

The schedules are transformers', with two differences, because each step costs a whole population:
warm-up begins above zero, and the last step is not zero either.
"""

import math

import numpy as np

from estune.config import ESConfig


def alpha(config: ESConfig, step: int) -> float:
    """α of `step` (from 1): `learning_rate`, by default σ/2, times the schedule's factor.

    With w warm-up steps out of T, the factor at step s is s/(w+1) for s ≤ w. After that, with
    p = (s−1−w)/(T−w), it is 1−p for linear, ½(1+cos πp) for cosine, and 1 otherwise.
    """
    warmup = config.warmup_steps
    if step <= warmup:
        return config.alpha * (step / (warmup + 1))
    progress = (step - 1 - warmup) / (config.max_steps - warmup)
    factors = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return config.alpha * factors.get(config.lr_scheduler_type, 1.0)


def sigma(config: ESConfig, step: int) -> float:
    """σ of `step` (from 1): from `sigma` to `sigma_end`, linearly or along half a cosine."""
    if config.sigma_end is None:
        return config.sigma
    progress = (step - 1) / max(1, config.max_steps - 1)
    linear = config.sigma_scheduler_type == "linear"
    left = 1 - progress if linear else (1 + math.cos(math.pi * progress)) / 2
    return config.sigma_end + left * (config.sigma - config.sigma_end)


def decay(config: ESConfig, step: int) -> float:
    """d = fp32(α·λ): how far θ moves back to θ₀ before the update, per unit of its distance."""
    return float(np.float32(alpha(config, step) * config.weight_decay))
