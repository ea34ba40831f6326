"""The rows of a batch that still generate, so that no token is computed twice, or for a row that has ended.

generate computes what all prompts begin with once a row, and goes on with rows that have ended until the last one has. With a
cache of keys and values that outlives a call, the beginning is computed once, and ended rows are taken out between calls.
"""

import inspect
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

_WORTH = 64  # tokens that computing the beginning by itself must save: it is one more pass over the weights


class Rows:
    """Left-padded rows of tokens.

    Args:
        model: of transformers; when it keeps anything but keys and values, `cache` is None, and rows must go through one call.
        encoded: the tokens of each prompt.
        pad: the token to pad with.
    """

    def __init__(self, model: Any, encoded: Sequence[list[int]], pad: int) -> None:
        longest = max(map(len, encoded))
        self.left = list(range(len(encoded)))  # which of `encoded` each row is
        self.ids = torch.tensor([[pad] * (longest - len(row)) + row for row in encoded], device=model.device)  # (B, L)
        self.mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=model.device)  # (B, L)
        self.cache = _cache(model)
        if self.cache is not None and _by_position(model, self.cache):
            _begin(model, self.cache, encoded)

    def grow(self, ids: torch.Tensor) -> None:
        """Take what generate made of the rows."""
        self.ids = ids
        self.mask = torch.nn.functional.pad(self.mask, (0, ids.shape[1] - self.mask.shape[1]), value=1)

    def keep(self, places: list[int]) -> None:
        """Leave out all rows but those at `places`."""
        if len(places) < len(self.left):
            self.left = [self.left[place] for place in places]
            chosen = torch.tensor(places, dtype=torch.long, device=self.ids.device)
            self.ids, self.mask = self.ids[chosen], self.mask[chosen]
            if self.cache is not None and places:
                self.cache.batch_select_indices(chosen)


def _cache(model: Any) -> Any:
    """An empty cache, as generate would make it, if rows can be taken out of it."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    return cache if cache.layers and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers) else None


def _by_position(model: Any, cache: Any) -> bool:
    """Whether keys and values depend on a token, those before it and its position alone; and all are kept."""
    from transformers.cache_utils import DynamicLayer

    known = type(model).__module__.startswith("transformers.") and "position_ids" in inspect.signature(model.forward).parameters
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", None))  # these depend on the whole length:
    return known and all(type(layer) is DynamicLayer for layer in cache.layers) and "dynamic" not in rope and "longrope" not in rope


def _begin(model: Any, cache: Any, encoded: Sequence[list[int]]) -> None:
    """Fill `cache` with what all rows begin with: as many first places as it has tokens, padding before it."""
    longest, shortest = max(map(len, encoded)), min(map(len, encoded))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(encoded), max(encoded), strict=False))  # first and last in order
    shared = min(len(list(alike)), shortest - 1)  # something must be left to generate from
    if shared * (len(encoded) - 2) < _WORTH:
        return
    model.base_model(input_ids=torch.tensor([encoded[0][:shared]], device=model.device), past_key_values=cache, use_cache=True)
    padding = torch.tensor([longest - len(row) for row in encoded], device=model.device)
    places = torch.arange(shared, device=model.device) - padding[:, None]  # (B, P)
    places = places.clamp(min=0)  # what stands at padding is masked
    for layer in cache.layers:  # (1, H, P, D) → (B, H, P, D)
        layer.keys = layer.keys[0][:, places].transpose(0, 1).contiguous()
        layer.values = layer.values[0][:, places].transpose(0, 1).contiguous()
