"""The noise on any device of torch: plain tensor operations in int64, with the reference's bits.

It serves devices without a kernel of their own. Products of two 32-bit words are taken in 16-bit
parts, since int64 is the widest integer that every device has. The fp32 product and sum are
separate operations, so they are not fused.
"""

from collections.abc import Iterator
from functools import cache

import torch

from estune.noise import reference
from estune.noise.reference import BLOCK, MULTIPLIERS, ROUNDS, WEYL

_CHUNK = 1 << 22  # elements at a time: limits the scratch memory to about 300 MB
_WORD = 0xFFFFFFFF


def noise(seed: int, t: int, start: int, size: int, device: torch.device) -> torch.Tensor:
    """Return ε of the elements start … start + size − 1 of stream `t`, fp32, flat, on `device`."""
    first = start // BLOCK
    last = -(-(start + size) // BLOCK)
    blocks = torch.arange(first, last, dtype=torch.int64, device=device)  # (B,)
    words = torch.stack(_philox(blocks, t, seed & _WORD, seed >> 32), dim=1)  # (B, 4)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=2).reshape(-1)  # (8·B,)
    return _table(device)[halves[start - first * BLOCK :][:size]]


def perturb(
    theta: torch.Tensor, scale: float, seed: int, t: int, start: int, out: torch.Tensor
) -> torch.Tensor:
    """out ← fl(θ + fl(scale·ε)), rounded to out's dtype; both flat, on one device.

    Return whether all is finite, as a tensor of shape ().
    """
    finite = torch.ones((), dtype=torch.bool, device=theta.device)
    for part in _chunks(theta.numel()):
        step = noise(seed, t, start + part.start, part.stop - part.start, theta.device).mul_(scale)
        out[part] = step.add_(theta[part])
        finite &= torch.isfinite(out[part]).all()
    return finite


def update(
    theta: torch.Tensor, coefficients: list[float], seeds: list[int], t: int, start: int
) -> None:
    """θ ← fl(θ + δ) in place, δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order; θ flat, fp32."""
    for part in _chunks(theta.numel()):
        delta = torch.zeros_like(theta[part])
        for seed, coefficient in zip(seeds, coefficients, strict=True):
            epsilon = noise(seed, t, start + part.start, delta.numel(), theta.device)
            delta += epsilon.mul_(coefficient)
        theta[part] += delta


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(reference.table()).to(device)


def _chunks(size: int) -> Iterator[slice]:
    for low in range(0, size, _CHUNK):
        yield slice(low, min(size, low + _CHUNK))


def _philox(blocks: torch.Tensor, t: int, k0: int, k1: int) -> list[torch.Tensor]:
    """Return the four words of Philox4x32-10 at the counters (block, t); each (B,)."""
    c0, c1 = blocks & _WORD, blocks >> 32
    c2, c3 = torch.full_like(blocks, t & _WORD), torch.full_like(blocks, t >> 32)
    for _ in range(ROUNDS):
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + WEYL[0]) & _WORD
        k1 = (k1 + WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def _product(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and low 32 bits of word · multiplier; no intermediate reaches 2⁴⁹."""
    low = (word & 0xFFFF) * multiplier
    middle = (low >> 16) + (word >> 16) * multiplier
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
