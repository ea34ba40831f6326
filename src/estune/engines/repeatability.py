"""Whether a model can be asked again, and together with others: what a check of its weights alone does not show.

Some models change their own weights or state as they run, and some don't mask the padding of a batch, so that an answer depends on
what was asked before or beside it. Both are found by asking the same few tokens twice alone, then once in a padded batch.
"""

from dataclasses import dataclass
from typing import Any

import torch

PROMPTS = (
    (5, 7, 11),
    (2, 3, 13, 17, 19, 23, 29, 31),
)  # token ids; the first is padded beside the second
STEPS = 2  # tokens to generate: the second is computed from what the model keeps of the first
_ROUNDING = {
    torch.float32: 2e-2,
    torch.float16: 0.25,
    torch.bfloat16: 0.4,
}  # of `difference`; wrong answers have about 1


class Seen:
    """A logits processor that changes nothing and keeps what it is shown."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []  # (B, V) a step

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores.float().cpu())
        return scores


@dataclass(frozen=True)
class Answer:
    """What a model made of one prompt: its logits (V,) and the token that it chose, step by step."""

    logits: list[torch.Tensor]
    tokens: list[int]

    @classmethod
    def of(cls, seen: Seen, ids: torch.Tensor, row: int) -> "Answer":
        """That of `row` in a batch whose ids (B, L) end with the new ones."""
        return cls(
            [step[row] for step in seen.logits],
            ids[row, ids.shape[1] - len(seen.logits) :].tolist(),
        )


def difference(one: Answer, other: Answer) -> float:
    """How far the logits of two answers to one prompt are apart, in their standard deviations; 0 where they are equal to the bit.

    Later steps are compared as long as both chose the same tokens before.
    """
    largest = 0.0
    for step, (mine, its) in enumerate(zip(one.logits, other.logits, strict=False)):
        if one.tokens[:step] != other.tokens[:step]:
            break
        known = torch.isfinite(mine) & torch.isfinite(its)
        spread = float(mine[known].std()) if int(known.sum()) > 1 else 0.0
        apart = float((mine - its)[known].pow(2).mean().sqrt()) if int(known.sum()) else 0.0
        largest = max(largest, apart / max(spread, 1e-9) if apart else 0.0)
    return largest


def within_rounding(distance: float, dtype: Any) -> bool:
    """Whether answers that are so far apart may be the same, computed in another order in `dtype`."""
    return distance <= _ROUNDING.get(dtype, _ROUNDING[torch.float32])
