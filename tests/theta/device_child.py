"""Apply the same operations to θ on a device and to θ on the CPU, and compare the results.

Tests that import this file use torch's kernels in place of a device's. As a program under
TRITON_INTERPRET=1, started by tests/theta/test_theta_device.py, it uses Triton's kernels.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

from estune.common.types import Candidate, Member, ThetaUpdate
from estune.noise import kernels
from estune.theta import writer
from estune.theta.checkpoint import Checkpoint, Stored
from estune.theta.theta import Theta

SHAPES = {
    "b.weight": (30, 71),
    "a.weight": (9_003,),
    "norm": (7,),
    "empty": (0, 3),
    "scalar": (),
    "odd": (3, 5, 11),
}
SEEDS, COEFFICIENTS = [5, 2**64 - 1, 0], [1e-3, -3e-4, 2e-5]
MEMBERS = [
    Member(9, -1, 1e-3, "iid", 3),
    Member(2, 1, 0.1, "correlated", 3),
    Candidate(tuple(SEEDS), tuple(COEFFICIENTS), "iid", 3),
]


def base(folder: Path) -> Checkpoint:
    """Write θ₀ in bf16 to a file.

    Its weights have very different sizes, so that another order or a fused product shows.
    """
    generator = torch.Generator().manual_seed(1)
    theta = {
        name: (
            torch.randn(shape, generator=generator)
            * 10.0 ** torch.randint(-5, 1, shape, generator=generator)
        ).bfloat16()
        for name, shape in SHAPES.items()
    }
    save_file(theta, folder / "model.safetensors")
    return Checkpoint(
        folder,
        {
            name: Stored("model.safetensors", torch.bfloat16, shape)
            for name, shape in SHAPES.items()
        },
    )


def updated(checkpoint: Checkpoint, **options: bool) -> Theta:
    """θ after an update, one with decay, and one of correlated noise."""
    theta = Theta.load(checkpoint, SHAPES, **options)
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=0))
    theta.update(ThetaUpdate(SEEDS[:1], COEFFICIENTS[:1], noise="iid", version=1, decay=0.25))
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="correlated", version=2))
    return theta


def bits(theta: Theta) -> dict[str, str]:
    """Everything of a member in every dtype, as text."""
    found = {}
    for number, member in enumerate(MEMBERS):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            room = {name: torch.full(shape, 7.0, dtype=dtype) for name, shape in SHAPES.items()}
            for name, tensor in theta.perturbed(member, room.__getitem__):
                found[f"{number} {dtype} {name}"] = (
                    tensor.view(-1).view(torch.uint8).numpy().tobytes().hex()
                )
    return found


def stand_in(backend: ModuleType, job: int = 1 << 12) -> None:
    """From now on CPU tensors are taken for a device's, whose kernels are `backend`'s."""
    kernels.on_device = lambda kind: backend  # type: ignore[assignment]
    writer.DEVICE_JOB = job


def main(folder: Path) -> dict[str, bool]:
    from estune.noise import triton

    checkpoint = base(folder)
    here = updated(checkpoint, share=True)
    wanted = bits(here)
    numba = kernels.on_device
    stand_in(triton)
    there = updated(checkpoint)
    found = {"digest": there.digest() == here.digest(), "members": bits(there) == wanted}
    kernels.compiled = lambda kind: True  # type: ignore[assignment]
    return found | {
        "streamed": bits(here) == wanted,
        "on a device": there.on_device and not here.on_device,
        "numba": numba("cpu") is None,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
