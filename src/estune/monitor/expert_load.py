"""How evenly the tokens of a mixture of experts are spread over its experts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from estune.common.types import ExpertCounts


@dataclass(frozen=True)
class ExpertLoad:
    """The load of one variant's experts, over the tokens that it generated.

    entropy: of the layers' distributions of tokens over experts, the mean, divided by that of an
        even one: 1 is even, 0 is one expert for all.
    busiest: the largest fraction of a layer's load that one expert has, in the worst layer.
    """

    entropy: float
    busiest: float

    @classmethod
    def of(cls, parts: Iterable[ExpertCounts]) -> "ExpertLoad | None":
        """Return the load from what each worker counted; None if nothing was counted."""
        layers = _summed([part for part in parts if part])
        shares = [[count / sum(layer) for count in layer] for layer in layers if sum(layer)]
        shares = [layer for layer in shares if len(layer) > 1]
        if not shares:
            return None
        entropies = [_entropy(layer) / math.log(len(layer)) for layer in shares]
        return cls(math.fsum(entropies) / len(entropies), max(map(max, shares)))


def expert_metrics(loads: Sequence[ExpertLoad | None]) -> dict[str, float]:
    """Return the means over the members of a mixture of experts; nothing for other models."""
    known = [load for load in loads if load is not None]
    if not known:
        return {}
    return {
        "moe/load_entropy": math.fsum(load.entropy for load in known) / len(known),
        "moe/busiest_share": math.fsum(load.busiest for load in known) / len(known),
    }


def _summed(parts: Sequence[ExpertCounts]) -> ExpertCounts:
    return [
        [sum(counts) for counts in zip(*layer, strict=True)] for layer in zip(*parts, strict=True)
    ]


def _entropy(shares: Sequence[float]) -> float:
    return -math.fsum(share * math.log(share) for share in shares if share)
