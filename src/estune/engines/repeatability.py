"""Whether a model completes a prompt the same way again, and the same way in a batch.

Some models change their own weights or state as they run, and some do not mask the padding of a
batch, so that a completion depends on earlier prompts or on the others in its batch. Comparing
weights does not show that. So the engine completes the same few tokens twice alone and once in a
padded batch, and the logits are compared.
"""

from dataclasses import dataclass

import torch

# Token ids. In a batch of both, the first prompt is padded.
PROMPTS = ((5, 7, 11), (2, 3, 13, 17, 19, 23, 29, 31))
STEPS = 2  # tokens to generate: the second needs the state (cache) that the first left
# Larger differences are not rounding. Between different prompts the difference is about 1.
_ROUNDING = {torch.float32: 2e-2, torch.float16: 0.25, torch.bfloat16: 0.4}


class LogitsRecorder:
    """A logits processor that changes nothing and keeps the logits (B, V) of each step."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logits.append(scores.float().cpu())
        return scores


@dataclass(frozen=True)
class Probe:
    """What a model computed for one prompt: at each step its logits (V,) and the chosen token."""

    logits: list[torch.Tensor]
    tokens: list[int]

    @classmethod
    def of(cls, recorder: LogitsRecorder, ids: torch.Tensor, row: int) -> "Probe":
        """Return the probe of `row` in a batch whose ids (B, L) end with the new tokens."""
        steps = len(recorder.logits)
        return cls([step[row] for step in recorder.logits], ids[row].tolist()[-steps:])


def difference(one: Probe, other: Probe) -> float:
    """Return the largest distance between the logits of two probes of one prompt.

    It is measured per step in standard deviations of the logits, up to the first step at which the
    chosen tokens differ; 0 if they are equal to the bit.
    """
    largest = 0.0
    for step, (first, second) in enumerate(zip(one.logits, other.logits, strict=False)):
        if one.tokens[:step] != other.tokens[:step]:
            break
        largest = max(largest, _distance(first, second))
    return largest


def within_rounding(distance: float, dtype: torch.dtype) -> bool:
    """Whether a difference so large may come from rounding in `dtype` alone."""
    return distance <= _ROUNDING.get(dtype, _ROUNDING[torch.float32])


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the root mean square of first − second, in standard deviations of `first`."""
    known = torch.isfinite(first) & torch.isfinite(second)
    if not known.any():
        return 0.0
    apart = float((first - second)[known].pow(2).mean().sqrt())
    spread = float(first[known].std(correction=min(1, int(known.sum()) - 1)))
    return apart / max(spread, 1e-9) if apart else 0.0
