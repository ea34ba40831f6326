"""Draw tokens with transformers so that a completion depends only on its own seed.

torch draws the random numbers of a whole batch from one stream, so the batch size would change the
completions. Here each completion has its own stream of uniform numbers, one per token. numpy makes
them, so they are the same on every device.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.types import Sampling


def sample_seeds(ids: Sequence[int], sampling: Sampling) -> list[int]:
    """Return a seed below 2⁶³ for each of the n completions of the prompt `ids`."""
    prompt = np.asarray(ids, "<i8").tobytes()
    return [_hash(prompt, sampling.seed, index) for index in range(sampling.n)]


class Drawn:
    """A logits processor for greedy generation that leaves only the drawn token in some rows.

    Args:
        rows: the positions in the batch of the rows to draw for (R).
        uniform: a number in [0, 1) for each new token of each (R, T).
        sampling: temperature and top_p.
        width: tokens in each row before the first new one.
    """

    def __init__(
        self, rows: Sequence[int], uniform: NDArray[np.float32], sampling: Sampling, width: int
    ) -> None:
        self._rows = torch.tensor(rows)
        self._uniform = torch.from_numpy(uniform)
        self._sampling = sampling
        self._width = width

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = self._rows.to(scores.device)
        uniform = self._uniform[:, ids.shape[1] - self._width].to(scores.device)  # (R,)
        chosen = draw(scores[rows], uniform, self._sampling)
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, chosen] = 0.0
        return scores


def draw(scores: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the first token at which the cumulative probability exceeds `uniform`.

    Args:
        scores: logits (B, V).
        uniform: numbers in [0, 1), (B,).
        sampling: temperature and top_p.

    Returns:
        Token ids (B,).
    """
    probabilities = (scores.float() / sampling.temperature).softmax(-1)
    order = None
    if sampling.top_p < 1:  # drop all tokens after the one that reaches top_p
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.where(before < sampling.top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    index = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    index = torch.minimum(index, _last_possible(probabilities))  # rounding may exceed it
    return (index if order is None else order.gather(1, index))[:, 0]


def _last_possible(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the index (B, 1) of the last token whose probability is not zero."""
    from_the_end = probabilities.flip(-1).ne(0).int().argmax(-1, keepdim=True)
    return probabilities.shape[-1] - 1 - from_the_end


def _hash(prompt: bytes, seed: int, index: int) -> int:
    salt = index.to_bytes(16, "little")
    digest = hashlib.blake2b(prompt, digest_size=8, salt=salt, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little") >> 1
