"""One vocabulary for what travels between the trainer, the workers and the engines."""

from dataclasses import dataclass
from typing import Any, TypeGuard

Prompt = str | list[int] | list[dict[str, Any]]  # text or token ids that go in as they are, or a conversation for the chat template


def is_token_ids(prompt: Any) -> TypeGuard[list[int]]:
    """Whether `prompt` is a list of token ids."""
    return isinstance(prompt, list) and len(prompt) > 0 and all(type(token) is int and token >= 0 for token in prompt)


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
