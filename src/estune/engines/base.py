"""The seam to whatever runs the model: an engine takes weights by checkpoint name, and answers prompts greedily.

An engine knows no reward and no strategy. It must fail loudly: a weight that it did not take is an `EngineError`.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from estune.member import Completion, Prompt


class Engine(Protocol):
    """What `workers/` needs of an engine."""

    def destination(self, name: str) -> torch.Tensor:
        """A contiguous tensor, of the dtype the engine wants, into which the weights of parameter `name` are written."""

    def load(self, weights: Iterable[tuple[str, slice, torch.Tensor]]) -> None:
        """Take weights as (name in the checkpoint, flat range, tensor from `destination`)."""

    def read(self, name: str) -> torch.Tensor:
        """The parameter `name` as the engine holds it now."""

    def generate(self, prompts: Sequence[Prompt], *, max_completion_length: int) -> list[Completion]:
        """Answer every prompt greedily, in order. Raises EngineError when it cannot."""

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens in each prompt."""

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together."""
