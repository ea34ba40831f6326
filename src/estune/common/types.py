"""One vocabulary for what travels between the trainer, the workers and the engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Prompt = (
    str | list[int] | list[dict[str, Any]]
)  # text or token ids that go in as they are, or a conversation for the chat template
Row = dict[str, Any]  # one row of a dataset: column → value


def is_token_ids(prompt: Any) -> TypeGuard[list[int]]:
    """Whether `prompt` is a list of token ids."""
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(type(token) is int and token >= 0 for token in prompt)
    )


@dataclass(frozen=True)
class Member:
    """One perturbed model, by address: θ + sign·σ·ε(seed) of the centre at `version`. σ = 0 is the centre itself.

    With `seeds` it is a candidate instead: θ + Σ cₙ·εₙ, the centre that an update by these coefficients would make.
    """

    seed: int
    sign: int
    sigma: float
    noise: str  # "iid" or "correlated"
    version: int
    seeds: tuple[int, ...] = ()
    coefficients: tuple[float, ...] = ()  # one a seed, fp32 numbers

    @classmethod
    def unperturbed(cls, noise: str, version: int) -> "Member":
        """The centre itself."""
        return cls(0, 1, 0.0, noise, version)

    @classmethod
    def candidate(
        cls, seeds: Sequence[int], coefficients: Sequence[float], noise: str, version: int
    ) -> "Member":
        """What the centre would be after an update, before it is made."""
        return cls(0, 1, 0.0, noise, version, tuple(seeds), tuple(coefficients))


@dataclass(frozen=True)
class Sampling:
    """How to draw several completions of each prompt; names are TRL's and vLLM's.

    A completion depends on `seed`, its prompt's tokens and its own number among `n` alone, up to the engine's rounding,
    so that batches, workers and other prompts don't change it. Rows with the same prompt get the same completions.
    """

    temperature: float = 1.0  # above 0; 1 is the model itself
    top_p: float = 1.0  # part of the probability to draw from, likeliest tokens first
    n: int = 1  # completions a prompt
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt; `ids` are the new tokens, without padding or the end token."""

    text: str
    ids: list[int]
    clipped: bool  # ended by the token budget rather than by the model or a stop string
    finite: bool = (
        True  # False where the model computed NaN or infinity, so that this is no answer of it
    )
