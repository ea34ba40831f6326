"""Requests that a transformers model completes together, with their cache of keys and values.

Each is a row of tokens, and rows are aligned at their ends, so that their lengths may differ: one
can leave the batch, and another join it, between two calls of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.types import Sampling
from estune.engines.cache_reuse import Reuse, new_cache
from estune.engines.stops import Stops
from estune.engines.vision import Inputs, merged

# The common prefix is computed separately only if that saves at least this many tokens, because it
# costs one more pass over the weights.
_WORTH = 64


@dataclass(eq=False)
class OpenRequest:
    """A prompt, and the tokens that the model has added to it.

    number: what the caller calls it.
    budget: the most tokens to add.
    stops: the strings that end it.
    sampling, seed: how to draw tokens and from which stream of random numbers; None: greedily.
    finite: whether the largest logit was always finite.
    """

    number: int
    inputs: Inputs
    budget: int
    stops: Stops
    sampling: Sampling | None = None
    seed: int = 0
    new: list[int] = field(default_factory=list)
    finite: bool = True

    @cached_property
    def stream(self) -> NDArray[np.float32]:
        """A random number in [0, 1) for each new token."""
        return np.random.default_rng(self.seed).random(self.budget, np.float32)

    def uniform(self, count: int) -> NDArray[np.float32]:
        """Return the next `count` numbers of its stream, and zeros beyond its budget."""
        numbers = self.stream[len(self.new) :][:count]
        return np.pad(numbers, (0, count - len(numbers)))

    def restart(self) -> None:
        """Forget what the model has added."""
        self.new, self.finite = [], True


class Batch:
    """Requests that are in the model together, one per row.

    Args:
        model: a causal LM of transformers.
        reuse: what the model allows to reuse. If ended rows must stay, `cache` is None, and a
            single call of `generate` must complete all of them.
        requests: new ones of one kind (`Inputs.kind`).
        pad: the token to pad with.

    Attributes:
        ids: token ids (B, L).
        mask: 1 for tokens, 0 for padding (B, L).
        features: what belongs to the prompts' images; then ended rows must stay.
        cache: keys and values of all tokens but the last, or None.
    """

    def __init__(self, model: Any, reuse: Reuse, requests: Sequence[OpenRequest], pad: int) -> None:
        inputs = [one.inputs for one in requests]
        self.requests = list(requests)
        self.features = merged(inputs, model.device, model.dtype)
        if self.features:
            reuse = reuse.none("a prompt holds images")
        self._pad = pad
        encoded = [one.ids for one in inputs]
        ids = [torch.tensor(prompt, dtype=torch.long, device=model.device) for prompt in encoded]
        ones = [torch.ones_like(prompt) for prompt in ids]
        self.ids = _left_padded(ids, pad)
        self.mask = _left_padded(ones, 0)
        self.cache = None if reuse.keeps_ended else new_cache(model)
        self.open = not reuse.repeats_prefix  # others may join
        if self.open:
            shared = _common_prefix(encoded)
            if shared * (len(encoded) - 2) >= _WORTH:
                self._compute_prefix(model, reuse.argument, shared)

    def extend(self, ids: torch.Tensor) -> None:
        """Replace the tokens by `ids`, to which `generate` has appended some."""
        width = self.ids.shape[1]
        for request, new in zip(self.requests, ids[:, width:].tolist(), strict=True):
            request.new += new
        self.ids = ids
        self.mask = torch.nn.functional.pad(self.mask, (0, ids.shape[1] - width), value=1)

    def keep(self, positions: Sequence[int]) -> None:
        """Remove all requests but those at `positions`, and the columns that only they used."""
        if len(positions) == len(self.requests):
            return
        self.requests = [self.requests[position] for position in positions]
        chosen = torch.tensor(positions, dtype=torch.long, device=self.ids.device)
        self.ids = self.ids[chosen]
        self.mask = self.mask[chosen]
        if self.cache is None or not self.requests:
            return
        self.cache.batch_select_indices(chosen)
        if self.open:
            self._widen(-int(self.mask.argmax(1).min()))

    def join(self, other: "Batch") -> None:
        """Take over the requests of `other`.

        Both are open, and their caches hold all tokens but the last.

        Keys and values depend on a token's position in its row and not on its column, so rows may
        be moved to the right.
        """
        width = max(self.ids.shape[1], other.ids.shape[1])
        for batch in (self, other):
            batch._widen(width - batch.ids.shape[1])
        self.requests += other.requests
        self.ids = torch.cat([self.ids, other.ids])
        self.mask = torch.cat([self.mask, other.mask])
        assert self.cache is not None
        assert other.cache is not None
        for layer, more in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys = torch.cat([layer.keys, more.keys])  # (B, H, L − 1, D)
            layer.values = torch.cat([layer.values, more.values])

    def _widen(self, columns: int) -> None:
        """Add empty columns on the left, or remove them if `columns` is negative."""
        if not columns:
            return
        pad = torch.nn.functional.pad
        self.ids = pad(self.ids, (columns, 0), value=self._pad)
        self.mask = pad(self.mask, (columns, 0))
        assert self.cache is not None
        for layer in self.cache.layers:
            layer.keys = pad(layer.keys, (0, 0, columns, 0))
            layer.values = pad(layer.values, (0, 0, columns, 0))

    def _compute_prefix(self, model: Any, argument: str, shared: int) -> None:
        """Fill the first `shared` positions of every row in the cache, including padding."""
        padding = (self.mask == 0).sum(1, keepdim=True)  # (B, 1)
        first = self.ids[:1, int(padding[0]) :][:, :shared]  # (1, P)
        model.base_model(input_ids=first, use_cache=True, **{argument: self.cache})
        places = torch.arange(shared, device=padding.device) - padding  # (B, P)
        places = places.clamp(min=0)  # padding is masked, so it may hold anything
        assert self.cache is not None
        for layer in self.cache.layers:  # (1, H, P, D) → (B, H, P, D)
            layer.keys = layer.keys[0][:, places].transpose(0, 1).contiguous()
            layer.values = layer.values[0][:, places].transpose(0, 1).contiguous()


def _left_padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=value, padding_side="left"
    )


def _common_prefix(encoded: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts share at the start, leaving at least one in each."""
    shortest = min(map(len, encoded))
    # All others lie between these two in lexical order, so they share the prefix of these two.
    first, last = min(encoded), max(encoded)
    pairs = zip(first[: shortest - 1], last, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
