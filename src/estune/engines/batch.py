"""A batch of sequences while they are generated, with their cache of keys and values."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from estune.engines.cache_reuse import Reuse, new_cache

# The common prefix is computed separately only if that saves at least this many tokens, because it
# costs one more pass over the weights.
_WORTH = 64


class Batch:
    """Left-padded sequences of tokens, one per prompt. Ended ones can be removed.

    Args:
        model: a causal LM of transformers.
        reuse: what the model allows to reuse. If ended sequences must stay, `cache` is None, and a
            single call of `generate` must complete all sequences.
        encoded: the tokens of each prompt.
        pad: the token to pad with.
        features: what belongs to the prompts' images; then ended sequences must stay.

    Attributes:
        remaining: the index in `encoded` of each sequence that is still in the batch.
        ids: token ids (B, L).
        mask: 1 for tokens, 0 for padding (B, L).
        cache: keys and values of all tokens but the last, or None.
    """

    def __init__(
        self,
        model: Any,
        reuse: Reuse,
        encoded: Sequence[list[int]],
        pad: int,
        features: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.features = features or {}
        self.remaining = list(range(len(encoded)))
        device = model.device
        ids = [torch.tensor(prompt, dtype=torch.long, device=device) for prompt in encoded]
        ones = [torch.ones_like(prompt) for prompt in ids]
        self.ids = _left_padded(ids, pad)
        self.mask = _left_padded(ones, 0)
        self.cache = None if reuse.keeps_ended else new_cache(model)
        if not reuse.repeats_prefix:
            shared = _common_prefix(encoded)
            if shared * (len(encoded) - 2) >= _WORTH:
                self._compute_prefix(model, reuse.argument, shared)

    def extend(self, ids: torch.Tensor) -> None:
        """Replace the sequences by `ids`, to which `generate` has appended tokens."""
        new = ids.shape[1] - self.ids.shape[1]
        self.ids = ids
        self.mask = torch.nn.functional.pad(self.mask, (0, new), value=1)

    def keep(self, positions: list[int]) -> None:
        """Remove all sequences but those at `positions`."""
        if len(positions) == len(self.remaining):
            return
        self.remaining = [self.remaining[position] for position in positions]
        chosen = torch.tensor(positions, dtype=torch.long, device=self.ids.device)
        self.ids = self.ids[chosen]
        self.mask = self.mask[chosen]
        if self.cache is not None and positions:
            self.cache.batch_select_indices(chosen)

    def _compute_prefix(self, model: Any, argument: str, shared: int) -> None:
        """Fill the first `shared` positions of every sequence in the cache, including padding."""
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
