"""The distance that a run has moved θ from the base model, computed from the journal alone.

Each weight's noise is standard normal and independent of the others'. A step with coefficients cₙ
therefore moves the weights by a root mean square of √Σcₙ², and the squares of different steps add
up. Over a model's many weights this gives the distance itself to about four digits; rounding is far
smaller. A weight decay d first moves θ back by that fraction of the distance.
"""

import math
from collections.abc import Sequence

from estune.theta.journal import Step


def distance(before: float, coefficients: Sequence[float], decay: float = 0.0) -> float:
    """Return the RMS of θ − θ₀ over the tuned weights after an update.

    `before` is the RMS before the update.
    """
    return math.hypot((1 - decay) * before, *coefficients)


def travelled(steps: Sequence[Step]) -> float:
    """Return the RMS of θ − θ₀ after `steps`, from the last step that recorded it.

    Older versions of estune did not record it.
    """
    far = 0.0
    unrecorded: list[Step] = []
    for step in reversed(steps):
        metrics = step.notes.get("metrics", {})
        if "es/distance" in metrics:
            far = metrics["es/distance"]
            break
        unrecorded.append(step)
    for step in reversed(unrecorded):
        far = distance(far, step.coefficients, step.decay or 0.0)
    return float(far)
