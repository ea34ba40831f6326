"""The definition of ε in numpy. Every faster backend gives the same bits.

ε is a pure function of (seed, parameter name, flat row-major index). Nothing about the machine, the
engine's layout, the dtype or the number of workers can change it. The bits come from Philox4x32-10
(Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), a counter-based generator: any
element can be computed without those before it. Each 16-bit half of its output indexes a table of
65,536 normal quantiles, so no transcendental function is needed and rounding is the same
everywhere.
"""

import hashlib
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

BLOCK = 8  # elements per Philox block: four 32-bit words of two halves each
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
TABLE_DIGEST = "65561716612ffbcbfd947ed80353b542"
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@cache
def table() -> NDArray[np.float32]:
    """Return the normal quantiles Φ⁻¹((k+½)/65536), scaled to a mean square of one.

    fp32 (65536,), read-only.
    """
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((k + 0.5) / 65536) for k in range(65536)])
    values: NDArray[np.float32] = (quantiles / np.sqrt(np.mean(quantiles**2))).astype("<f4")
    digest = hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
    if digest != TABLE_DIGEST:
        raise AssertionError(f"the table of quantiles has digest {digest}, not {TABLE_DIGEST}")
    values.flags.writeable = False
    return values


def stream(name: str, *, correlated: bool = False) -> int:
    """Return the 64-bit stream number t of a parameter; 0 in the paper's correlated mode."""
    if correlated:
        return 0
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Return the words (4, B) of Philox4x32-10 at `counter` (4, B), as uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first = c0 * np.uint64(MULTIPLIERS[0])
        second = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (second >> _32) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _32) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0 = (k0 + WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
    """Write elements start, start + 1, … of stream `t` under `seed` into the flat array `out`."""
    first = start // BLOCK
    last = -(-(start + out.size) // BLOCK)
    blocks = np.arange(first, last, dtype=np.uint64)  # (B,)
    streams = np.full_like(blocks, t)
    counter = np.stack([blocks & _LOW, blocks >> _32, streams & _LOW, streams >> _32])  # (4, B)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))  # (4, B)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=1)  # (4, 2, B)
    flat = halves.transpose(2, 0, 1).reshape(-1)  # (8·B,)
    out[:] = table()[flat[start - first * BLOCK :][: out.size]]
