"""α, σ and the decay that are in force at a step: functions of the config and the step's number alone.

The schedules are those of transformers, with two differences, since every step here costs a whole population: warming
up begins above zero, and the last step is not zero either.
"""

import math

import numpy as np

from estune.config import ESConfig


def alpha(config: ESConfig, step: int) -> float:
    """α of `step`, from 1: `learning_rate`, or σ/2 of the σ that the run begins with, times the schedule's factor.

    With w warm-up steps of T: s/(w+1) for s ≤ w; then with p = (s−1−w)/(T−w) linear 1−p, cosine ½(1+cos πp), else 1.
    """
    warmup, kind = config.warmup_steps, config.lr_scheduler_type
    if step <= warmup:
        return config.alpha * (step / (warmup + 1))
    progress = (step - 1 - warmup) / (config.max_steps - warmup)
    return config.alpha * {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }.get(kind, 1.0)


def sigma(config: ESConfig, step: int) -> float:
    """σ of `step`, from 1: from `sigma` at the first to `sigma_end` at the last, linearly or along half a cosine."""
    if config.sigma_end is None:
        return config.sigma
    progress = (step - 1) / max(1, config.max_steps - 1)
    left = (
        1 - progress
        if config.sigma_scheduler_type == "linear"
        else (1 + math.cos(math.pi * progress)) / 2
    )
    return config.sigma_end + left * (config.sigma - config.sigma_end)


def decay(config: ESConfig, step: int) -> float:
    """d = fp32(α·λ): the part of its way to the base model by which θ draws nearer to it before the update is added."""
    return float(np.float32(alpha(config, step) * config.weight_decay))
