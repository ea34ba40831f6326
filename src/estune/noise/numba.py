"""The noise on a CPU: ε is made in the cache and used at once, so a member costs one pass over θ.

Kernels work on flat spans and release the GIL; `theta/` deals spans to threads. Elements do not
depend on each other, so neither the spans nor the number of threads can change a bit. Numba never
contracts a product and a sum into a fused multiply-add unless fastmath is on; it must stay off.

NOTE: numba widens uint32 op uint32 to uint64, hence the casts after every operation.
"""

from typing import Any

import numba as nb
import numpy as np

from estune.noise.prefetch import prefetch
from estune.noise.reference import BLOCK, MULTIPLIERS, ROUNDS, WEYL

_CHUNK = 4096  # elements per chunk: they stay in the first-level cache
_GROUP = 256  # elements whose bits are made together, while the processor looks up earlier ones
_LINE = 16  # fp32 elements in a cache line
_M0 = np.uint64(MULTIPLIERS[0])
_M1 = np.uint64(MULTIPLIERS[1])
_W0 = np.uint32(WEYL[0])
_W1 = np.uint32(WEYL[1])
_32 = np.uint64(32)
_16 = np.uint32(16)
_ONE = np.uint32(1)
_HALF_BFLOAT16 = np.uint32(0x7FFF)  # just under half a unit in bf16's last place
_INFINITE = np.uint32(0x7F800000)  # the exponent of infinity and NaN
_INFINITE_BFLOAT16 = np.uint32(0x7F80)

_jit: Any = nb.njit(nogil=True, cache=True)
_inline: Any = nb.njit(nogil=True, cache=True, inline="always")


@_jit
def perturb_float32(theta, scale, seed, t, start, table, out):  # type: ignore[no-untyped-def]
    """out ← fl(θ + fl(scale·ε)); theta, out (B,) fp32. Return whether all of it is finite."""
    halves = np.empty(_GROUP, np.uint16)
    padded = np.zeros(_CHUNK, np.float32)
    edge = np.empty(_CHUNK, np.float32)
    worst = np.uint32(0)
    for position in range(-(start % BLOCK), theta.size, _CHUNK):
        first, last = max(position, 0), min(position + _CHUNK, theta.size)
        source = _whole_chunk(theta, position, first, last, padded)
        here = out[first:last]
        target = here if here.size == _CHUNK else edge
        _add_noise(source, scale, seed, t, start + position, table, halves, target, theta, last)
        if here.size < _CHUNK:
            here[:] = edge[first - position : last - position]
        pattern = here.view(np.uint32)
        for i in range(pattern.size):
            worst = max(worst, np.uint32(pattern[i] & _INFINITE))
    return worst != _INFINITE


@_jit
def perturb_bfloat16(theta, scale, seed, t, start, table, out):  # type: ignore[no-untyped-def]
    """Like `perturb_float32`, then rounded to nearest even in bf16; out (B,) uint16 holds bits."""
    halves = np.empty(_GROUP, np.uint16)
    padded = np.zeros(_CHUNK, np.float32)
    edge = np.empty(_CHUNK, np.uint16)
    worst = np.uint32(0)
    for position in range(-(start % BLOCK), theta.size, _CHUNK):
        first, last = max(position, 0), min(position + _CHUNK, theta.size)
        source = _whole_chunk(theta, position, first, last, padded)
        here = out[first:last]
        target = here if here.size == _CHUNK else edge
        element = start + position
        largest = _add_noise_bfloat16(
            source, scale, seed, t, element, table, halves, target, theta, last
        )
        worst = max(worst, largest)
        if here.size < _CHUNK:
            here[:] = edge[first - position : last - position]
    return worst != _INFINITE_BFLOAT16


@_jit
def update(theta, coefficients, seeds, t, start, table):  # type: ignore[no-untyped-def]
    """θ ← fl(θ + δ) in place, δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order; theta (B,) fp32."""
    halves = np.empty(_GROUP, np.uint16)
    delta = np.empty(_CHUNK, np.float32)
    for position in range(-(start % BLOCK), theta.size, _CHUNK):
        first, last = max(position, 0), min(position + _CHUNK, theta.size)
        delta[:] = 0
        for n in range(seeds.size):
            _accumulate(delta, coefficients[n], seeds[n], t, start + position, table, halves)
        theta[first:last] += delta[first - position : last - position]


@_inline
def _whole_chunk(theta, position, first, last, padded):  # type: ignore[no-untyped-def]
    """Return `_CHUNK` elements of θ from `position` on.

    A chunk that extends beyond the span's edge is completed in `padded`.
    """
    if last - first == _CHUNK:
        return theta[first:last]
    padded[first - position : last - position] = theta[first:last]
    return padded


@_jit
def _add_noise(source, scale, seed, t, element, table, halves, out, ahead, at):  # type: ignore[no-untyped-def]
    """out ← fl(source + fl(scale·ε)) for `_CHUNK` elements from `element`, a multiple of 8, on.

    Meanwhile ahead[at:], which the next chunk will read, is fetched.
    """
    words = halves.view(np.uint32)
    for group in range(0, _CHUNK, _GROUP):
        _philox(seed, t, np.uint64((element + group) // BLOCK), words)
        for line in range(group, group + _GROUP, _LINE):
            prefetch(ahead, at + line)
            for i in range(line, line + _LINE):
                out[i] = source[i] + scale * table[halves[i - group]]


@_jit
def _add_noise_bfloat16(source, scale, seed, t, element, table, halves, out, ahead, at):  # type: ignore[no-untyped-def]
    """Like `_add_noise`, rounded to bf16; return the largest exponent.

    Rounding a group at a time costs nothing next to the look-ups.
    """
    words = halves.view(np.uint32)
    value = np.empty(_GROUP, np.float32)
    pattern = value.view(np.uint32)
    worst = np.uint32(0)
    for group in range(0, _CHUNK, _GROUP):
        _philox(seed, t, np.uint64((element + group) // BLOCK), words)
        for line in range(0, _GROUP, _LINE):
            prefetch(ahead, at + group + line)
            for i in range(line, line + _LINE):
                value[i] = source[group + i] + scale * table[halves[i]]
        for i in range(_GROUP):
            odd = np.uint32(np.uint32(pattern[i] >> _16) & _ONE)
            rounded = np.uint32(np.uint32(np.uint32(pattern[i] + _HALF_BFLOAT16) + odd) >> _16)
            out[group + i] = np.uint16(rounded)
            worst = max(worst, np.uint32(rounded & _INFINITE_BFLOAT16))
    return worst


@_jit
def _accumulate(delta, scale, seed, t, element, table, halves):  # type: ignore[no-untyped-def]
    """delta ← fl(delta + fl(scale·ε)); delta stays in the cache, so nothing is fetched ahead."""
    words = halves.view(np.uint32)
    for group in range(0, _CHUNK, _GROUP):
        _philox(seed, t, np.uint64((element + group) // BLOCK), words)
        for i in range(group, group + _GROUP):
            delta[i] += scale * table[halves[i - group]]


@_inline
def _philox(seed, t, block, words):  # type: ignore[no-untyped-def]
    """Write the words of the Philox blocks block, block + 1, …, four per block."""
    for b in range(_GROUP // BLOCK):
        counter = np.uint64(block + np.uint64(b))
        c0, c1 = np.uint32(counter), np.uint32(counter >> _32)
        c2, c3 = np.uint32(t), np.uint32(t >> _32)
        k0, k1 = np.uint32(seed), np.uint32(seed >> _32)
        for _ in range(ROUNDS):
            first, second = np.uint64(c0) * _M0, np.uint64(c2) * _M1
            c0 = np.uint32(np.uint32(np.uint32(second >> _32) ^ c1) ^ k0)
            c1 = np.uint32(second)
            c2 = np.uint32(np.uint32(np.uint32(first >> _32) ^ c3) ^ k1)
            c3 = np.uint32(first)
            k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
        words[4 * b], words[4 * b + 1], words[4 * b + 2], words[4 * b + 3] = c0, c1, c2, c3
