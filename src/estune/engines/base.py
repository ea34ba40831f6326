"""The seam to whatever runs the model: an engine holds one variant of θ at a time, and completes prompts.

An engine knows no reward and no strategy. It must fail loudly: a weight that it did not take is an `EngineError`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from estune.common.types import Completion, Prompt, Sampling, Unperturbed, Variant
from estune.errors import EngineError
from estune.theta.theta import Theta


class Engine(Protocol):
    """What `workers/` needs of an engine."""

    def load(self, theta: Theta, variant: Variant) -> None:
        """Take the variant's weights from `theta.perturbed`. Raises EngineError when one is not taken."""

    def check(self, theta: Theta, variant: Variant) -> None:
        """Raises EngineError unless the engine holds exactly the variant's weights; costs more than `load`."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        """Answer every prompt, in order: greedily, or with `sampling.n` completions of the first prompt, then of the next.

        Raises:
            EngineError: it cannot.
        """

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens in each prompt."""

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together."""


def compare(theta: Theta, variant: Variant, read: Callable[[str], torch.Tensor]) -> None:
    """Raises EngineError unless `read(name)` gives the variant's weights, for every name."""
    for name, wanted in theta.perturbed(variant, lambda name: torch.empty_like(read(name))):
        if not torch.equal(read(name), wanted):
            whose = "θ's" if isinstance(variant, Unperturbed) else "the member's"
            raise EngineError(
                f"the engine does not hold {whose} weights in {name}; its layout differs from the files'"
            )
