"""How far a run took θ from the base model, told by the journal alone: what was not asked for may be lost on the way.

The noise of a weight is standard normal and independent of all others', so a step with coefficients cₙ displaces weights by a root
mean square of √Σcₙ², and displacements of different steps add as squares. Over a model's many weights that is no estimate but
the distance itself, to some four digits; rounding is far below them. A decay d draws θ nearer by that part first.
"""

import math
from collections.abc import Sequence

from estune.theta.journal import Step


def distance(before: float, coefficients: Sequence[float], decay: float = 0.0) -> float:
    """Root mean square of θ − θ₀ over the tuned weights after an update, `before` being that of the θ that it moved."""
    return math.hypot((1 - decay) * before, *coefficients)


def travelled(steps: Sequence[Step]) -> float:
    """The distance after `steps`; each knows it, but for those that an older version wrote down."""
    known = next(
        (
            i
            for i in range(len(steps), 0, -1)
            if "es/distance" in steps[i - 1].notes.get("metrics", {})
        ),
        0,
    )
    far = steps[known - 1].notes["metrics"]["es/distance"] if known else 0.0
    for step in steps[known:]:
        far = distance(far, step.coefficients, step.decay or 0.0)
    return float(far)
