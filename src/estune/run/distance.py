"""How far a run has moved θ from the base model, computed from the journal alone.

Each weight's noise is standard normal and independent of the others'. A step with coefficients cₙ
therefore moves the weights by √Σcₙ² (root mean square), and the squares of different steps add up.
A model has so many weights that the result is right to about four digits; rounding errors are far
smaller. A weight decay d first moves θ back by the fraction d of its distance.
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
    """Return the RMS of θ − θ₀ after `steps`.

    It is computed from the last step that recorded it, because earlier versions did not.
    """
    rms = 0.0
    unrecorded: list[Step] = []
    for step in reversed(steps):
        metrics = step.notes.get("metrics", {})
        if "es/distance" in metrics:
            rms = metrics["es/distance"]
            break
        unrecorded.append(step)
    for step in reversed(unrecorded):
        rms = distance(rms, step.coefficients, step.decay or 0.0)
    return float(rms)
