"""Apply noise to tensors, with the fastest backend for their device.

All tensors here are flat and contiguous. The arithmetic is that of docs/exactness.md: fp32 product,
fp32 sum, never fused, then one rounding to the destination's dtype. On a device, work is only
queued in the current stream.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch

from estune.noise.reference import table

Finite = bool | torch.Tensor  # on a device a tensor of shape (), so that nothing waits for it
_TRITON = ("cuda", "xpu")  # kinds of device that Triton compiles for; ROCm's is called cuda, too


def perturb(
    theta: torch.Tensor, scale: float, seed: int, t: int, start: int, out: torch.Tensor
) -> Finite:
    """Write a member's weights; return whether all are finite.

    out ← rn(fl(θ + fl(scale·ε))) for the elements start, start + 1, … of stream t.
    """
    if backend := on_device(theta.device.type):
        finite: torch.Tensor = backend.perturb(theta, scale, seed, t, start, out)
        return finite
    from estune.noise import numba as kernels

    noise = (np.float32(scale), np.uint64(seed), np.uint64(t), start, table())
    if out.dtype == torch.bfloat16:
        return bool(kernels.perturb_bfloat16(theta.numpy(), *noise, out.view(torch.uint16).numpy()))
    exact = out if out.dtype == torch.float32 else torch.empty_like(theta)
    finite_in_float32 = bool(kernels.perturb_float32(theta.numpy(), *noise, exact.numpy()))
    if exact is out:
        return finite_in_float32
    return bool(torch.isfinite(out.copy_(exact)).all())


def update(
    theta: torch.Tensor, coefficients: Sequence[float], seeds: Sequence[int], t: int, start: int
) -> None:
    """θ ← fl(θ + δ) in place, with δ ← fl(δ + fl(cₙ·εₙ)) over the seeds in order."""
    if backend := on_device(theta.device.type):
        backend.update(theta, coefficients, seeds, t, start)
        return
    from estune.noise import numba as kernels

    factors = np.array(coefficients, np.float32)
    keys = np.array(seeds, np.uint64)
    kernels.update(theta.numpy(), factors, keys, np.uint64(t), start, table())


def decay(theta: torch.Tensor, base: torch.Tensor, d: float) -> None:
    """θ ← fl(base + fl(fl(1−d)·fl(θ−base))) in place.

    `base` may be in another dtype and on another device; d is an fp32 number.
    """
    base = base.to(theta.device, torch.float32)
    keep = float(np.float32(1) - np.float32(d))
    theta.sub_(base).mul_(keep).add_(base)  # three operations, each rounded


@cache
def compiled(kind: str) -> bool:
    """Whether Triton is installed and compiles for devices of this kind."""
    return kind in _TRITON and find_spec("triton") is not None


@cache
def on_device(kind: str) -> ModuleType | None:
    """Return the backend for devices of this kind; None for a CPU, whose kernels are numba's."""
    if kind == "cpu":
        return None
    if compiled(kind):
        from estune.noise import triton

        return triton
    from estune.noise import torch

    return torch
