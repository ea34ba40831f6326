"""The noise on any device that torch can address: plain tensor operations in int64, with the reference's bits.

It serves devices that have no kernel of their own. Products of two 32-bit words are taken in 16-bit parts, since
int64 is the widest integer that every device has; the fp32 product and sum are two operations, so nothing fuses them.
"""

from functools import cache

import torch

from estune.noise import reference
from estune.noise.reference import BLOCK, MULTIPLIERS, ROUNDS, WEYL

_CHUNK = 1 << 22  # elements at a time: bounds the scratch memory to some 300 MB
_WORD = 0xFFFFFFFF


def noise(seed: int, t: int, start: int, size: int, device: torch.device) -> torch.Tensor:
    """ε of elements start … start + size of stream `t`, fp32, flat, on `device`."""
    first, last = start // BLOCK, -(-(start + size) // BLOCK)
    blocks = torch.arange(first, last, dtype=torch.int64, device=device)  # (B,)
    words = torch.stack(_philox(blocks, t, (seed & _WORD, seed >> 32)), dim=1)  # (B, 4)
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=2).reshape(-1)  # (8·B,)
    return _table(device)[halves[start - first * BLOCK :][:size]]


def perturb(
    theta: torch.Tensor, scale: float, seed: int, t: int, start: int, out: torch.Tensor
) -> torch.Tensor:
    """out ← fl(θ + fl(scale·ε)), rounded to out's dtype; both flat, on one device. Returns whether all is finite, ()."""
    finite = torch.ones((), dtype=torch.bool, device=theta.device)
    for part in _chunks(theta.numel()):
        step = noise(seed, t, start + part.start, part.stop - part.start, theta.device).mul_(scale)
        out[part] = step.add_(theta[part])
        finite &= torch.isfinite(out[part]).all()
    return finite


def update(
    theta: torch.Tensor, coefficients: list[float], seeds: list[int], t: int, start: int
) -> None:
    """θ ← fl(θ + δ), δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order; theta flat, fp32, in place."""
    for part in _chunks(theta.numel()):
        delta = torch.zeros_like(theta[part])
        for seed, coefficient in zip(seeds, coefficients, strict=True):
            delta += noise(seed, t, start + part.start, delta.numel(), theta.device).mul_(
                coefficient
            )
        theta[part] += delta


def decay(theta: torch.Tensor, base: torch.Tensor, keep: float) -> None:
    """θ ← fl(base + fl(keep·fl(θ − base))), three operations, so that nothing fuses them; flat, fp32, in place."""
    for part in _chunks(theta.numel()):
        theta[part] = (theta[part] - base[part]).mul_(keep).add_(base[part])


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(reference.table()).to(device)


def _chunks(size: int) -> list[slice]:
    return [slice(low, min(size, low + _CHUNK)) for low in range(0, size, _CHUNK)]


def _philox(blocks: torch.Tensor, t: int, key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10 at the counters (block, t); four tensors of words (B,)."""
    c0, c1 = blocks & _WORD, blocks >> 32
    c2, c3 = torch.full_like(blocks, t & _WORD), torch.full_like(blocks, t >> 32)
    k0, k1 = key
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & _WORD, (k1 + WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def _product(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of word · multiplier; no intermediate reaches 2⁴⁹."""
    low, high = (word & 0xFFFF) * multiplier, (word >> 16) * multiplier
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
