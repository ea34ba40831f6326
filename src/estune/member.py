"""One vocabulary for what travels between the trainer, the workers and the engines."""

from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, Any]]  # text that goes in as it is, or a conversation for the chat template


@dataclass(frozen=True)
class Member:
    """One perturbed model, by address: θ + sign·σ·ε(seed) of the centre at `version`. σ = 0 is the centre itself."""

    seed: int
    sign: int
    sigma: float
    noise: str  # "iid" or "correlated"
    version: int


@dataclass(frozen=True)
class Completion:
    """What a model answered to one prompt; `ids` are the new tokens, without padding or the end token."""

    text: str
    ids: list[int]
    clipped: bool  # ended by the token budget rather than by the model or a stop string
