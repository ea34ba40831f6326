"""The noise on GPUs that Triton compiles for: ε is made in registers and used at once.

So a member's weights cost one pass over θ. A thread makes whole Philox blocks of eight neighbouring
elements. Launches turn floating-point fusion off, since the product is rounded before the sum.
Rounding to bf16 is done on the bits, so that it is the same everywhere.
"""

from contextlib import nullcontext
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from estune.noise import reference
from estune.noise.reference import BLOCK, MULTIPLIERS, ROUNDS, WEYL

_SIZE = 2048  # elements per program, a power of two
_WORD = 0xFFFFFFFF
_M0 = tl.constexpr(MULTIPLIERS[0])
_M1 = tl.constexpr(MULTIPLIERS[1])
_W0 = tl.constexpr(WEYL[0])
_W1 = tl.constexpr(WEYL[1])
_ROUNDS = tl.constexpr(ROUNDS)
_BLOCK = tl.constexpr(BLOCK)
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: numpy, on CPU tensors
LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


def noise(seed: int, t: int, start: int, size: int, device: torch.device) -> torch.Tensor:
    """Return ε of the elements start … start + size − 1 of stream `t`, fp32, flat, on `device`."""
    out = torch.zeros(size, device=device)
    if size:
        update(out, [1.0], [seed], t, start)
    return out


def perturb(
    theta: torch.Tensor, scale: float, seed: int, t: int, start: int, out: torch.Tensor
) -> torch.Tensor:
    """out ← fl(θ + fl(scale·ε)), rounded to out's dtype; both flat, on one device.

    Return whether all is finite, as a tensor of shape ().
    """
    size = theta.numel()
    overflown = torch.zeros((), dtype=torch.int32, device=theta.device)
    if not size:
        return overflown == 0
    target = out.view(torch.int16) if out.dtype == torch.bfloat16 else out
    tensors = (theta, target, overflown, _table(theta.device))
    with _current(theta.device):
        _perturb[_programs(start, size)](
            *tensors, float(scale), *_words(seed), *_words(t), *_place(start, size), **LAUNCH
        )
    return overflown == 0


def update(
    theta: torch.Tensor, coefficients: list[float], seeds: list[int], t: int, start: int
) -> None:
    """θ ← fl(θ + δ) in place, δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order; θ flat, fp32."""
    size = theta.numel()
    device = theta.device
    if not size or not seeds:
        return
    factors, keys = _members(tuple(coefficients), tuple(seeds), device)
    tensors = (theta, _table(device), factors, keys)
    with _current(device):
        _update[_programs(start, size)](
            *tensors, len(seeds), *_words(t), *_place(start, size), **LAUNCH
        )


@lru_cache(maxsize=1)
def _members(
    coefficients: tuple[float, ...], seeds: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients (N,) and the seeds' words (N, 2) on the device.

    They are kept, since each copy of them would wait for everything that is queued there.
    """
    keys = torch.tensor([_words(seed) for seed in seeds], dtype=torch.int64).to(torch.int32)
    return torch.tensor(coefficients, dtype=torch.float32, device=device), keys.to(device)


def _current(device: torch.device) -> Any:
    """Make `device` current: Triton launches there, not on the device of its arguments."""
    return torch.get_device_module(device).device(device) if device.type != "cpu" else nullcontext()


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.tensor(reference.table()).to(device)


def _words(value: int) -> tuple[int, int]:
    return value & _WORD, value >> 32


def _place(start: int, size: int) -> tuple[int, int, int, int]:
    """Return the kernels' arguments first, size, SKIPPED and SIZE."""
    return start // BLOCK, size, start % BLOCK, _SIZE


def _programs(start: int, size: int) -> tuple[int]:
    return (triton.cdiv(start % BLOCK + size, _SIZE),)


@triton.jit(do_not_specialize=["k0", "k1", "t0", "t1", "first"])  # type: ignore[untyped-decorator]
def _perturb(  # type: ignore[no-untyped-def]
    theta,
    out,
    overflown,
    table,
    scale,
    k0,
    k1,
    t0,
    t1,
    first,
    size,
    SKIPPED: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The span begins with element SKIPPED < 8 of the block `first`.

    Each SKIPPED is compiled separately, but the spans of a whole θ have 0.
    """
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE) - SKIPPED
    there = (at >= 0) & (at < size)
    epsilon = tl.load(table + _halves(first, k0, k1, t0, t1, SIZE))
    value = tl.load(theta + at, mask=there, other=0.0) + scale * epsilon
    if out.dtype.element_ty == tl.int16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        finite = (rounded & 0x7F80) != 0x7F80
        tl.store(out + at, rounded.to(tl.int16), mask=there)
    else:
        rounded = value.to(out.dtype.element_ty)
        finite = tl.abs(rounded.to(tl.float32)) < float("inf")
        tl.store(out + at, rounded, mask=there)
    if tl.max((there & (finite == 0)).to(tl.int32), axis=0) > 0:
        tl.store(overflown, 1)


@triton.jit(do_not_specialize=["seeds", "t0", "t1", "first"])  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    theta,
    table,
    factors,
    keys,
    seeds,
    t0,
    t1,
    first,
    size,
    SKIPPED: tl.constexpr,
    SIZE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE) - SKIPPED
    there = (at >= 0) & (at < size)
    delta = tl.zeros([SIZE], tl.float32)
    for n in range(seeds):
        k0, k1 = tl.load(keys + 2 * n), tl.load(keys + 2 * n + 1)
        delta += tl.load(factors + n) * tl.load(table + _halves(first, k0, k1, t0, t1, SIZE))
    tl.store(theta + at, tl.load(theta + at, mask=there, other=0.0) + delta, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _halves(first, k0, k1, t0, t1, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the 16-bit halves (SIZE,) of this program's Philox blocks.

    They are in the elements' order: low before high, word by word.
    """
    COUNT: tl.constexpr = SIZE // _BLOCK
    block = tl.cast(first, tl.int64) + tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zeros = tl.full([COUNT], 0, tl.uint32)
    c2 = zeros + tl.cast(t0, tl.uint32)
    c3 = zeros + tl.cast(t1, tl.uint32)
    k0, k1 = tl.cast(k0, tl.uint32), tl.cast(k1, tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first0, second0 = c0, c2
        c0 = tl.umulhi(second0, tl.full([COUNT], _M1, tl.uint32)) ^ c1 ^ k0
        c1 = second0 * tl.full([COUNT], _M1, tl.uint32)
        c2 = tl.umulhi(first0, tl.full([COUNT], _M0, tl.uint32)) ^ c3 ^ k1
        c3 = first0 * tl.full([COUNT], _M0, tl.uint32)
        k0, k1 = k0 + tl.full([], _W0, tl.uint32), k1 + tl.full([], _W1, tl.uint32)
    words = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    return tl.interleave(words & 0xFFFF, words >> 16)
