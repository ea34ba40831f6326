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
    """The member θ + sign·σ·ε(seed) of a population, where θ has had `version` updates."""

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
    """θ + Σ cₙ·ε(seedₙ): what θ would become by an update that is only tried.

    θ has had `version` updates.
    """

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
    version: how many updates θ has had before this one.
    decay: from 0 to 1; before δ is added, θ moves back towards θ₀ by this fraction of its distance.
    """

    seeds: Sequence[int]
    coefficients: Sequence[float]
    noise: str
    version: int
    decay: float = 0.0


Variant = Member | Unperturbed | Candidate  # weights that are computed from θ and put in an engine


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Return the variant as values that JSON can hold: its class as `kind`, and its fields."""
    return {"kind": type(variant).__name__, **vars(variant)}


def variant_from_json(record: dict[str, Any]) -> Variant:
    """Return the variant from which `variant_to_json` made `record`."""
    fields = {name: value for name, value in record.items() if name != "kind"}
    if record["kind"] == "Candidate":
        seeds, coefficients = tuple(fields.pop("seeds")), tuple(fields.pop("coefficients"))
        return Candidate(seeds, coefficients, **fields)
    return Member(**fields) if record["kind"] == "Member" else Unperturbed(**fields)


@dataclass(frozen=True)
class Sampling:
    """How to sample completions; the fields have the names that TRL and vLLM use.

    A completion depends only on `seed`, the prompt's tokens and its number from 0 to n − 1. Batch
    size, workers and other prompts change it only by the engine's rounding.
    """

    temperature: float = 1.0  # above 0; 1 leaves the model's probabilities as they are
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability
    n: int = 1  # completions per prompt
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """One completion that is wanted, greedy unless `sampling` says how to draw it.

    stop: strings that end it, besides the run's own.
    """

    prompt: Prompt
    max_completion_length: int
    sampling: Sampling | None = None  # its `n` is not used
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt; `ids` are its tokens, without padding and without end token."""

    text: str
    ids: list[int]
    clipped: bool  # cut off at the token budget, not ended by the model or a stop string
    finite: bool = True  # False if the model computed NaN or ∞; then the text is meaningless
