"""The rows of a batch that still generate, so that nothing is computed twice or for a row that has ended.

transformers' `generate` computes the beginning that all prompts share once per row, and goes on with rows that have ended until
the last one has. With a cache of keys and values that outlives a call, the beginning is computed once, and ended rows are
taken out between calls. `Reuse` says whether a model allows that.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

_WORTH = 64  # tokens that computing the beginning separately must save: it is one more pass over the weights
_CACHE_ARGUMENTS = (
    "cache",
    "past_key_values",
)  # names of forward's argument: since transformers 5.24, and before


@dataclass(frozen=True)
class Reuse:
    """What a batch of one model need not compute, and why not more.

    Attributes:
        argument: the name under which the model takes a cache.
        keeps_ended_rows: why rows that have ended stay in the batch; empty when they leave it.
        repeats_beginning: why each row computes the beginning that all prompts share; empty when it is computed once.
    """

    argument: str
    keeps_ended_rows: str = ""
    repeats_beginning: str = ""

    @classmethod
    def of(cls, model: Any) -> "Reuse":
        """What `model`, a causal LM of transformers, allows."""
        accepted = inspect.signature(model.forward).parameters
        argument = next((name for name in _CACHE_ARGUMENTS if name in accepted), "")
        if not argument:
            why = f"its forward has no argument {' or '.join(_CACHE_ARGUMENTS)}"
            return cls("", why, why)
        odd = _unlike_keys_and_values(new_cache(model))
        if odd:
            why = f"its cache keeps {odd}"
            return cls(argument, why, why)
        return cls(argument, "", _why_repeated(model))

    def describe(self) -> str:
        """One line for the log."""
        if self.keeps_ended_rows:
            return (
                "completions that have ended stay in the batch and the prompts' common beginning is computed once per prompt: "
                f"{self.keeps_ended_rows}"
            )
        if self.repeats_beginning:
            return f"the prompts' common beginning is computed once per prompt: {self.repeats_beginning}"
        return "the prompts' common beginning is computed once, and completions that have ended leave the batch"

    @property
    def whole(self) -> bool:
        """Whether nothing is computed twice."""
        return not (self.keeps_ended_rows or self.repeats_beginning)


class Rows:
    """Left-padded rows of tokens.

    Args:
        model: a causal LM of transformers.
        reuse: what it allows; where ended rows must stay, `cache` is None and rows must go through one call of `generate`.
        encoded: the tokens of each prompt.
        pad: the token to pad with.
    """

    def __init__(self, model: Any, reuse: Reuse, encoded: Sequence[list[int]], pad: int) -> None:
        longest = max(map(len, encoded))
        self.left = list(range(len(encoded)))  # which of `encoded` each row is
        self.ids = torch.tensor(
            [[pad] * (longest - len(row)) + row for row in encoded], device=model.device
        )  # (B, L)
        self.mask = torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=model.device
        )  # (B, L)
        self.cache = None if reuse.keeps_ended_rows else new_cache(model)
        if not reuse.repeats_beginning:
            _begin(model, reuse.argument, self.cache, encoded)

    def grow(self, ids: torch.Tensor) -> None:
        """Take what generate made of the rows."""
        self.ids = ids
        self.mask = torch.nn.functional.pad(
            self.mask, (0, ids.shape[1] - self.mask.shape[1]), value=1
        )

    def keep(self, places: list[int]) -> None:
        """Leave out all rows but those at `places`."""
        if len(places) < len(self.left):
            self.left = [self.left[place] for place in places]
            chosen = torch.tensor(places, dtype=torch.long, device=self.ids.device)
            self.ids, self.mask = self.ids[chosen], self.mask[chosen]
            if self.cache is not None and places:
                self.cache.batch_select_indices(chosen)


def new_cache(model: Any) -> Any:
    """An empty cache, as `generate` would make it."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _unlike_keys_and_values(cache: Any) -> str:
    """What a cache keeps besides keys and values of some or all tokens, from which rows can be taken out; or nothing."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not cache.layers:
        return "nothing that is known before the first token"
    return _kinds(
        layer
        for layer in cache.layers
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)
    )


def _why_repeated(model: Any) -> str:
    """Why keys and values may depend on more than a token, those before it and its position; or not all are kept."""
    from transformers.cache_utils import DynamicLayer

    if not type(model).__module__.startswith("transformers."):
        return "its code comes with the checkpoint, so how it counts positions is not known"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward has no argument position_ids"
    partial = _kinds(layer for layer in new_cache(model).layers if type(layer) is not DynamicLayer)
    if partial:
        return f"its cache forgets tokens ({partial})"
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", None))
    if "dynamic" in rope or "longrope" in rope:
        return "its positions depend on the whole length (dynamic RoPE)"
    return ""


def _kinds(layers: Iterable[Any]) -> str:
    return ", ".join(sorted({type(layer).__name__ for layer in layers}))


def _begin(model: Any, argument: str, cache: Any, encoded: Sequence[list[int]]) -> None:
    """Fill `cache` with what all rows begin with: as many first places as it has tokens, padding before it."""
    longest, shortest = max(map(len, encoded)), min(map(len, encoded))
    alike = takewhile(
        lambda pair: pair[0] == pair[1], zip(min(encoded), max(encoded), strict=False)
    )  # first and last in order
    shared = min(len(list(alike)), shortest - 1)  # something must be left to generate from
    if shared * (len(encoded) - 2) < _WORTH:
        return
    model.base_model(
        input_ids=torch.tensor([encoded[0][:shared]], device=model.device),
        use_cache=True,
        **{argument: cache},
    )
    padding = torch.tensor([longest - len(row) for row in encoded], device=model.device)
    places = torch.arange(shared, device=model.device) - padding[:, None]  # (B, P)
    places = places.clamp(min=0)  # what stands at padding is masked
    for layer in cache.layers:  # (1, H, P, D) → (B, H, P, D)
        layer.keys = layer.keys[0][:, places].transpose(0, 1).contiguous()
        layer.values = layer.values[0][:, places].transpose(0, 1).contiguous()
