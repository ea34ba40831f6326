"""The seam to whoever evaluates members: one engine in this process, or many on a cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from estune.member import Completion, Member, Prompt


@dataclass(frozen=True)
class Evaluation:
    """What one member answered, and the seconds that writing its weights and generating took."""

    index: int
    completions: list[Completion]
    load_seconds: float
    generate_seconds: float


class Workers(Protocol):
    """Evaluate members of a population, and keep every replica of θ in step."""

    def evaluate(self, members: Sequence[Member], prompts: Sequence[Prompt], *, max_completion_length: int) -> Iterator[Evaluation]:
        """Each member's answers to all prompts, in the order in which they are done; `index` says whose."""

    def update(self, seeds: list[int], coefficients: list[float], *, noise: str, version: int) -> None:
        """Apply one update to θ everywhere; `version` is the one that it starts from, so a repetition does nothing."""
