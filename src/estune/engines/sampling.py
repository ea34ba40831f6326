"""Drawing tokens with transformers so that a completion depends on its own seed alone, whatever stands beside it in a batch.

torch's own sampling draws for a whole batch from one stream, so another batch size gives other answers. Here each
completion has a stream of uniform numbers, one a token, made with numpy: the same on every device.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from estune.common.types import Sampling


def sample_seeds(ids: Sequence[int], sampling: Sampling) -> list[int]:
    """A seed below 2⁶³ for each of the n completions of the prompt `ids`."""
    prompt = np.asarray(ids, "<i8").tobytes()
    return [_hash(prompt, sampling.seed, index) for index in range(sampling.n)]


class Drawn:
    """A logits processor for greedy generation that leaves one token in each row: the one that was drawn.

    Args:
        seeds: one a row.
        sampling: temperature and top_p.
        prompt_length: tokens in each row before the first new one.
        budget: new tokens at most.
    """

    def __init__(
        self, seeds: Sequence[int], sampling: Sampling, prompt_length: int, budget: int
    ) -> None:
        uniform = np.stack(
            [np.random.default_rng(seed).random(budget, np.float32) for seed in seeds]
        )  # (B, budget)
        self._uniform = torch.from_numpy(uniform)
        self._sampling, self._prompt_length = sampling, prompt_length

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        at = self._uniform[:, ids.shape[1] - self._prompt_length].to(scores.device)  # (B,)
        chosen = draw(scores, at, self._sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def draw(scores: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The token (B,) at which the cumulated probability of `scores` (B, V) passes `uniform` (B,), in [0, 1)."""
    probabilities = (scores.float() / sampling.temperature).softmax(-1)
    order = None
    if sampling.top_p < 1:  # keep the likeliest tokens up to the one that reaches top_p
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.where(before < sampling.top_p, 0.0)
    cumulated = probabilities.cumsum(-1)
    index = torch.searchsorted(cumulated, uniform[:, None] * cumulated[:, -1:], right=True)
    last = probabilities.shape[-1] - 1 - probabilities.flip(-1).ne(0).int().argmax(-1, keepdim=True)
    index = torch.minimum(
        index, last
    )  # rounding may lead past the last token that has any probability
    return (index if order is None else order.gather(1, index))[:, 0]


def _hash(prompt: bytes, seed: int, index: int) -> int:
    text = hashlib.blake2b(
        prompt, digest_size=8, salt=index.to_bytes(16, "little"), key=str(seed).encode()
    ).digest()
    return int.from_bytes(text, "little") >> 1
