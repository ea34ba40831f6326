"""Check that a model completes a prompt in the same way each time, alone and in a batch.

Some models change their weights or state as they run. Others do not mask the padding in a batch.
Their completions then depend on earlier prompts, or on the other prompts in the batch, which a
comparison of weights does not show. So the engine completes the same few tokens twice alone and
once in a padded batch, and these functions compare the logits.
"""

from dataclasses import dataclass

import torch

# Token ids. In a batch of both, the first prompt is padded.
PROMPTS = ((5, 7, 11), (2, 3, 13, 17, 19, 23, 29, 31))
STEPS = 2  # tokens to generate; the second one uses the cache that the first one left
# Differences above these are not rounding errors. Different prompts differ by about 1.
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
    def of(cls, recorder: LogitsRecorder, row: int, tokens: list[int]) -> "Probe":
        """Return the probe of one row of a batch, to which the model added `tokens`."""
        return cls([step[row] for step in recorder.logits], tokens)


def difference(one: Probe, other: Probe) -> float:
    """Return the largest distance between the logits of two probes of one prompt.

    The unit is the standard deviation of the logits. Steps after the first different token are not
    compared. 0 means that all bits are equal.
    """
    largest = 0.0
    for step, (first, second) in enumerate(zip(one.logits, other.logits, strict=False)):
        if one.tokens[:step] != other.tokens[:step]:
            break
        largest = max(largest, _distance(first, second))
    return largest


def within_rounding(distance: float, dtype: torch.dtype) -> bool:
    """Whether rounding in `dtype` alone may cause such a difference."""
    return distance <= _ROUNDING.get(dtype, _ROUNDING[torch.float32])


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the root mean square of first − second, in standard deviations of `first`."""
    known = torch.isfinite(first) & torch.isfinite(second)
    if not known.any():
        return 0.0
    apart = float((first - second)[known].pow(2).mean().sqrt())
    spread = float(first[known].std(correction=min(1, int(known.sum()) - 1)))
    return apart / max(spread, 1e-9) if apart else 0.0
