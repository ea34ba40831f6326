"""An engine without a language model, for tests of everything around one: its answers depend on the weights alone.

Each prompt looks at the weights along a fixed random direction; the projection sets how long the answer is. So the
reward of a length task responds to θ as with a real model, in microseconds.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.types import Completion, Prompt, Sampling, Variant
from estune.engines.base import compare
from estune.engines.sampling import sample_seeds
from estune.theta.checkpoint import Checkpoint
from estune.theta.theta import Theta

_WEIGHTS = 4096  # of each parameter, as many as are looked at


class FakeEngine:
    """Holds the weights `names` of a checkpoint in fp32, answers with letters."""

    def __init__(self, checkpoint: Checkpoint, names: Iterable[str]) -> None:
        self._weights = {name: checkpoint.read(name).float() for name in names}

    @property
    def context_length(self) -> int:
        return 1 << 20

    def read(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def load(self, theta: Theta, variant: Variant) -> None:
        for _ in theta.perturbed(variant, self.read):
            pass

    def check(self, theta: Theta, variant: Variant) -> None:
        compare(theta, variant, self.read)

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(str(prompt)) for prompt in prompts]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        flat = torch.cat([w.view(-1)[:_WEIGHTS].float() for w in self._weights.values()]).numpy()
        return [
            _answer(flat, prompt, max_completion_length, spread)
            for prompt in prompts
            for spread in _spreads(str(prompt), sampling)
        ]


def _spreads(prompt: str, sampling: Sampling | None) -> list[float]:
    """How many letters longer each completion of a prompt is than the greedy one."""
    if sampling is None:
        return [0.0]
    seeds = sample_seeds(list(prompt.encode()), sampling)
    return [
        5 * sampling.temperature * float(np.random.default_rng(seed).standard_normal())
        for seed in seeds
    ]


def _answer(flat: NDArray[np.float32], prompt: Prompt, budget: int, spread: float) -> Completion:
    number = int.from_bytes(hashlib.blake2b(str(prompt).encode(), digest_size=8).digest(), "little")
    direction = np.random.default_rng(number).standard_normal(flat.size)
    wanted = int(20 + 20 * float(direction @ flat) / (1e-9 + float(np.linalg.norm(flat))) + spread)
    length = min(budget, max(1, wanted))
    return Completion("x" * length, [1] * length, clipped=length == budget)
