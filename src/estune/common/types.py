"""The data types that the trainer, workers and engines exchange."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

# Text, token ids, or a conversation for the chat template; the first two reach the model unchanged.
Prompt = str | list[int] | list[dict[str, Any]]
ExpertCounts = list[list[int]]  # per layer of a mixture of experts: tokens that each expert served
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
    """A member of a population, by address: θ + sign·σ·ε(seed) of θ after `version` updates."""

    seed: int
    sign: int  # +1 or −1
    sigma: float
    noise: str  # "iid" or "correlated"
    version: int


@dataclass(frozen=True)
class Unperturbed:
    """θ itself after `version` updates."""

    version: int


@dataclass(frozen=True)
class Candidate:
    """θ + Σ cₙ·ε(seedₙ): what θ at `version` would become by an update that has not been made."""

    seeds: tuple[int, ...]
    coefficients: tuple[float, ...]  # fp32 numbers, one per seed
    noise: str  # "iid" or "correlated"
    version: int


@dataclass(frozen=True)
class ThetaUpdate:
    """One update of θ: δ = Σ cₙ·ε(seedₙ) in the seeds' order, then θ ← θ + δ.

    seeds: one per ε.
    coefficients: fp32 numbers, one per seed. If empty, only the version changes.
    noise: "iid" or "correlated".
    version: of θ before the update.
    decay: d, the fraction of the way back to θ₀ that θ moves first, from 0 to 1.
    """

    seeds: Sequence[int]
    coefficients: Sequence[float]
    noise: str
    version: int
    decay: float = 0.0


Variant = Member | Unperturbed | Candidate  # the weights that an engine can hold, computed from θ


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Return the variant's fields and its kind, as JSON can hold them."""
    return {"kind": type(variant).__name__, **vars(variant)}


def variant_from_json(record: dict[str, Any]) -> Variant:
    """Return the variant that `variant_to_json` described."""
    fields = {name: value for name, value in record.items() if name != "kind"}
    if record["kind"] == "Candidate":
        seeds, coefficients = tuple(fields.pop("seeds")), tuple(fields.pop("coefficients"))
        return Candidate(seeds, coefficients, **fields)
    return Member(**fields) if record["kind"] == "Member" else Unperturbed(**fields)


@dataclass(frozen=True)
class Sampling:
    """How to draw several completions of each prompt; the names are TRL's and vLLM's.

    A completion depends only on `seed`, the prompt's tokens and its index below `n`, up to the
    engine's rounding; batches, workers and other prompts don't change it.
    """

    temperature: float = 1.0  # above 0; 1 is the model itself
    top_p: float = 1.0  # part of the probability to draw from, likeliest tokens first
    n: int = 1  # completions per prompt
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt; `ids` are its new tokens, without padding and end token."""

    text: str
    ids: list[int]
    clipped: bool  # ended by the token budget rather than by the model or a stop string
    finite: bool = True  # False if the model computed NaN or ∞; then the text is meaningless
