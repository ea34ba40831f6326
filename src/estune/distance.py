"""How far a run took θ from the base model, told by the journal alone: what was not asked for may be lost on the way.

The noise of a weight is standard normal and independent of all others', so a step with coefficients cₙ displaces weights by a root
mean square of √Σcₙ², and displacements of different steps add as squares. Over a model's many weights that is no estimate but
the distance itself, to some four digits; rounding is far below them. A decay d draws θ nearer by that part first.
"""

import math
from collections.abc import Sequence


def distance(before: float, coefficients: Sequence[float], decay: float = 0.0) -> float:
    """Root mean square of θ − θ₀ over the tuned weights after an update, `before` being that of the θ that it moved."""
    return math.hypot((1 - decay) * before, *coefficients)
