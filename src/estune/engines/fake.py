"""An engine without a language model, for tests of everything around one: its answers depend on the weights alone.

Each prompt looks at the weights along a fixed random direction; the projection sets how long the answer is. So the
reward of a length task responds to θ as with a real model, in microseconds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from estune.member import Completion, Prompt

_WEIGHTS = 4096  # of each parameter, as many as are looked at


class FakeEngine:
    """Holds the weights in `dtype`, answers with letters."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> None:
        self._weights = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}

    @property
    def context_length(self) -> int:
        return 1 << 20

    def destination(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def read(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def load(self, weights: Iterable[tuple[str, slice, torch.Tensor]]) -> None:
        for name, where, tensor in weights:
            self._weights[name].view(-1)[where] = tensor.view(-1)

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(str(prompt)) for prompt in prompts]

    def generate(self, prompts: Sequence[Prompt], *, max_completion_length: int) -> list[Completion]:
        flat = torch.cat([w.view(-1)[:_WEIGHTS].float() for w in self._weights.values()]).numpy()
        return [_answer(flat, prompt, max_completion_length) for prompt in prompts]


def _answer(flat: NDArray[np.float32], prompt: Prompt, budget: int) -> Completion:
    number = int.from_bytes(hashlib.blake2b(str(prompt).encode(), digest_size=8).digest(), "little")
    direction = np.random.default_rng(number).standard_normal(flat.size)
    wanted = int(20 + 20 * float(direction @ flat) / (1e-9 + float(np.linalg.norm(flat))))
    length = min(budget, max(1, wanted))
    return Completion("x" * length, [1] * length, clipped=length == budget)
