"""The interface to an engine, which holds one variant of θ and completes prompts.

An engine does not know rewards or the strategy. If it cannot load a weight, it must raise
`EngineError`.
"""

from collections.abc import Callable, Container, Sequence
from typing import Protocol

import torch

from estune.common.types import (
    Completion,
    ExpertCounts,
    Prompt,
    Request,
    Sampling,
    Unperturbed,
    Variant,
)
from estune.errors import DataError, EngineError
from estune.theta.theta import Theta


class Engine(Protocol):
    """What `workers/` needs from an engine."""

    def load(self, theta: Theta, variant: Variant) -> None:
        """Take the variant's weights from `theta.perturbed`.

        Raises:
            EngineError: a weight was not taken.
        """

    def check(self, theta: Theta, variant: Variant) -> None:
        """Prove that the engine holds exactly the variant's weights. Slower than `load`.

        Raises:
            EngineError: it does not.
        """

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        """Complete every prompt, in order: greedily, or `sampling.n` times each.

        All completions of the first prompt come first, then those of the second. No request may
        be open.

        Raises:
            EngineError: the model failed.
        """

    def submit(self, request: Request) -> int:
        """Ask for a completion; return the request's number.

        The completion depends on the request alone, up to the engine's rounding.

        Raises:
            DataError: the model cannot read the prompt, or has no room behind it.
        """

    def step(self) -> list[tuple[int, Completion]]:
        """Add some tokens to every request, and return the numbers and completions that ended.

        Requests that were submitted since the last step join the others if there is room.

        Raises:
            EngineError: the model failed. The requests remain until they are aborted.
        """

    def abort(self, numbers: Container[int]) -> None:
        """Forget the requests with these numbers. None may be left when a variant is loaded."""

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens in each prompt."""

    def expert_counts(self) -> ExpertCounts:
        """Return the tokens that each expert served in the last `generate`; [] if not counted."""

    @property
    def context_length(self) -> int:
        """The most tokens that a prompt and its completion may have together."""


def budget_of(most: int, length: int, context: int) -> int:
    """Return how many of `most` tokens fit behind a prompt of `length` tokens.

    Raises:
        DataError: none does.
    """
    if length >= context:
        raise DataError(
            f"a prompt of {length:,} tokens leaves no room in the model's context of {context:,}"
        )
    return min(most, context - length)


def check_weights(theta: Theta, variant: Variant, read: Callable[[str], torch.Tensor]) -> None:
    """Compare the weights that `read(name)` gives with the variant's.

    Raises:
        EngineError: they differ.
    """

    def contiguous(name: str) -> torch.Tensor:
        held = read(name)
        return torch.empty(held.shape, dtype=held.dtype, device=held.device)

    for name, wanted in theta.perturbed(variant, contiguous):
        if not torch.equal(read(name), wanted):
            raise wrong_weights(variant, name)


def wrong_weights(variant: Variant, name: str) -> EngineError:
    """Return the error for an engine whose weights in `name` are not the variant's."""
    whose = "θ's" if isinstance(variant, Unperturbed) else "the member's"
    return EngineError(
        f"the engine does not hold {whose} weights in {name}; its layout may differ from the files'"
    )
