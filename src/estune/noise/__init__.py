"""ε by address: what the noise of a seed is, and the backends that make it, all with the same bits.

`reference.py` says what ε is; `numba.py` makes it on CPUs, `triton.py` on the GPUs that Triton compiles for and `torch.py`
on every other device. The kernels are imported when first needed: numba takes a second, and vLLM must be built before
numba's kernels exist.
"""

import math
from collections.abc import Callable, Sequence
from operator import index

import numpy as np
from numpy.typing import NDArray

from estune.errors import ConfigError
from estune.noise.reference import stream, table

__all__ = ["gaussian", "stream", "table"]

Fill = Callable[[int, int, int, NDArray[np.float32]], None]


def gaussian(
    seed: int, name: str, shape: Sequence[int], *, correlated: bool = False, backend: str = "auto"
) -> NDArray[np.float32]:
    """The noise ε of `seed` for the parameter `name`, as a new fp32 array of `shape`.

    ε depends on nothing but its arguments: every backend and every machine gives the same bits. With `correlated`
    all parameters share one stream, as in the scripts of the paper. Element i (row-major) is the same whatever the shape.

    Raises:
        ConfigError: the seed is no unsigned 64-bit integer, the shape holds something else than integers from 0 on,
            or the backend is not to be had.
    """
    if not hasattr(seed, "__index__") or not 0 <= index(seed) < 2**64:
        raise ConfigError(f"seed {seed!r} is not an integer from 0 to 2**64 - 1")
    try:
        sides = (
            (index(shape),) if hasattr(shape, "__index__") else tuple(index(side) for side in shape)
        )
    except TypeError:
        raise ConfigError(f"shape {shape!r} is not made of integers") from None
    if any(side < 0 for side in sides):
        raise ConfigError(f"shape {sides} has a negative side")
    out = np.empty(math.prod(sides), np.float32)
    _backend(backend)(index(seed), stream(name, correlated=correlated), 0, out)
    return out.reshape(sides)


def _backend(name: str) -> Fill:
    makers = {"auto": _numba, "numba": _numba, "numpy": _numpy, "torch": _torch, "triton": _triton}
    if name not in makers:
        raise ConfigError(f"noise backend {name!r} is not one of {', '.join(makers)}")
    return makers[name]()


def _numpy() -> Fill:
    from estune.noise.reference import fill

    return fill


def _numba() -> Fill:
    from estune.noise import numba as kernels

    def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
        kernels.fill(np.uint64(seed), np.uint64(t), start, table(), out)

    return fill


def _torch() -> Fill:
    import torch

    from estune.noise.torch import noise

    def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
        out[:] = noise(seed, t, start, out.size, torch.device("cpu")).numpy()

    return fill


def _triton() -> Fill:
    import torch

    try:
        from estune.noise import triton as kernels
    except ImportError:
        raise ConfigError(
            "noise backend 'triton': it is not installed; it comes with a build of torch for GPUs, or pip install triton"
        ) from None
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device("cpu") if kernels.INTERPRETED else found
    if device is None:
        raise ConfigError(
            "noise backend 'triton': there is no GPU here; choose auto, or set TRITON_INTERPRET=1 to try it, slowly"
        )

    def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
        out[:] = kernels.noise(seed, t, start, out.size, device).cpu().numpy()

    return fill
