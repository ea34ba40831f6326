"""ε by seed, parameter and index, and the backends that make it, all with the same bits.

`reference.py` defines ε. `numba.py` makes it on CPUs, `triton.py` on the GPUs that Triton compiles
for, and `torch.py` on every other device. A backend is imported when it is first needed: numba
takes a second, and vLLM must start before numba's kernels exist.
"""

import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.errors import ConfigError
from estune.noise import reference
from estune.noise.reference import stream, table

__all__ = ["gaussian", "stream", "table"]

Fill = Callable[[int, int, int, NDArray[np.float32]], None]


def gaussian(
    seed: int, name: str, shape: Sequence[int], *, correlated: bool = False, backend: str = "auto"
) -> NDArray[np.float32]:
    """Return the noise ε of `seed` for the parameter `name`.

    ε depends on nothing but its arguments: every backend and every machine gives the same bits.
    Element i (row-major) is the same whatever the shape.

    Args:
        seed: an integer from 0 to 2⁶⁴ − 1.
        name: the parameter's name in the checkpoint.
        shape: of the array.
        correlated: whether all parameters share one stream, as in the scripts of the paper.
        backend: "auto", "numba", "numpy" (the reference), "torch" or "triton".

    Returns:
        A new fp32 array of `shape`.

    Raises:
        ConfigError: the seed or the shape is invalid, or the backend is unknown or unavailable.
    """
    if not hasattr(seed, "__index__") or not 0 <= index(seed) < 2**64:
        raise ConfigError(f"seed {seed!r} is not an integer from 0 to 2**64 - 1")
    given: Any = (shape,) if hasattr(shape, "__index__") else shape
    try:
        sides = tuple(map(index, given))
    except TypeError:
        raise ConfigError(f"shape {shape!r} is not made of integers") from None
    if any(side < 0 for side in sides):
        raise ConfigError(f"shape {sides} has a negative side")
    out = np.empty(math.prod(sides), np.float32)
    _backend(backend)(index(seed), stream(name, correlated=correlated), 0, out)
    return out.reshape(sides)


def _backend(name: str) -> Fill:
    makers = {
        "auto": _numba,
        "numba": _numba,
        "numpy": lambda: reference.fill,
        "torch": _torch,
        "triton": _triton,
    }
    if name not in makers:
        raise ConfigError(f"noise backend {name!r} is not one of {', '.join(makers)}")
    return makers[name]()


def _numba() -> Fill:
    from estune.noise import numba as kernels

    def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
        zeros = np.zeros_like(out)
        one = np.float32(1)
        kernels.perturb_float32(zeros, one, np.uint64(seed), np.uint64(t), start, table(), out)

    return fill


def _torch() -> Fill:
    import torch

    from estune.noise.torch import noise

    return _from_tensors(noise, torch.device("cpu"))


def _triton() -> Fill:
    import torch

    try:
        from estune.noise import triton as kernels
    except ImportError:
        raise ConfigError(
            "noise backend 'triton': it is not installed; it comes with a build of torch for GPUs, "
            "or pip install triton"
        ) from None
    device = torch.accelerator.current_accelerator(check_available=True)
    if kernels.INTERPRETED:
        device = torch.device("cpu")
    if device is None:
        raise ConfigError(
            "noise backend 'triton': there is no GPU here; choose auto, "
            "or set TRITON_INTERPRET=1 to try it, slowly"
        )

    return _from_tensors(kernels.noise, device)


def _from_tensors(noise: Callable[..., Any], device: Any) -> Fill:
    """Return a backend that takes ε from tensors on `device`."""

    def fill(seed: int, t: int, start: int, out: NDArray[np.float32]) -> None:
        out[:] = noise(seed, t, start, out.size, device).cpu().numpy()

    return fill
