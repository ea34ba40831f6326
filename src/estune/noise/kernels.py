"""Apply noise to tensors, with the fastest backend for the device that they are on.

All tensors here are flat and contiguous. The arithmetic is the contract's: fp32 product, fp32 sum, never fused, then
one rounding to the destination's dtype. On a device work is only queued, in the current stream.
"""

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch

from estune.noise.reference import table

Finite = bool | torch.Tensor  # a tensor () on a device, so that nothing waits for it
_TRITON = (
    "cuda",
    "xpu",
)  # torch's names for the kinds of device that it compiles for; ROCm's are called cuda, too


def perturb(
    theta: torch.Tensor, scale: float, seed: int, t: int, start: int, out: torch.Tensor
) -> Finite:
    """out ← rn(fl(θ + fl(scale·ε))) for elements start, start + 1, … of stream t; returns whether all is finite."""
    if backend := on_device(theta.device.type):
        finite: torch.Tensor = backend.perturb(theta, scale, seed, t, start, out)
        return finite
    from estune.noise import numba as kernels

    place = (np.float32(scale), np.uint64(seed), np.uint64(t), start, table())
    if out.dtype == torch.bfloat16:
        return bool(kernels.perturb_bfloat16(theta.numpy(), *place, out.view(torch.uint16).numpy()))
    if out.dtype == torch.float32:
        return bool(kernels.perturb_float32(theta.numpy(), *place, out.numpy()))
    exact = torch.empty_like(theta)
    kernels.perturb_float32(theta.numpy(), *place, exact.numpy())
    return bool(torch.isfinite(out.copy_(exact)).all())


def update(
    theta: torch.Tensor, coefficients: list[float], seeds: list[int], t: int, start: int
) -> None:
    """θ ← fl(θ + δ) with δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order, in place."""
    if backend := on_device(theta.device.type):
        backend.update(theta, coefficients, seeds, t, start)
        return
    from estune.noise import numba as kernels

    members = np.array(coefficients, np.float32), np.array(seeds, np.uint64)
    kernels.update(theta.numpy(), *members, np.uint64(t), start, table())


def decay(theta: torch.Tensor, base: torch.Tensor, d: float) -> None:
    """θ ← fl(base + fl(fl(1−d)·fl(θ−base))) in place; `base` may be in another dtype, on another device. d is an fp32 number."""
    keep, base = np.float32(1) - np.float32(d), base.to(theta.device, torch.float32)
    if on_device(theta.device.type):
        from estune.noise.torch import decay as by_torch

        return by_torch(theta, base, float(keep))
    from estune.noise import numba as kernels

    kernels.decay(theta.numpy(), base.numpy(), keep)


@cache
def compiled(kind: str) -> bool:
    """Whether Triton is there and compiles for devices of this kind."""
    return kind in _TRITON and find_spec("triton") is not None


@cache
def on_device(kind: str) -> ModuleType | None:
    """The backend for devices of this kind; None for a CPU, whose kernels are numba's."""
    if kind == "cpu":
        return None
    if compiled(kind):
        from estune.noise import triton

        return triton
    from estune.noise import torch

    return torch
