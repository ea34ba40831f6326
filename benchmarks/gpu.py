"""Writing members and updating θ on a GPU, against its own copy bandwidth, and streaming members from host memory, against the bus.

    python -m benchmarks.gpu [--parameters-like qwen2.5-7b] [--json]
    python -m benchmarks.gpu --parameters-like tiny --device cpu      # the same lines on a CPU: its figures mean nothing

Weights are random, of the shapes that a model has, in bf16; θ is fp32. A copy's bandwidth counts bytes read and written.
Figures are printed as soon as they are known; with --json, as one object per line.

    perturbed_of_copy       bandwidth of writing a member from θ on the GPU ÷ that of a copy; at least 0.8
    update_1_of_copy        the same of an update of one seed; at least 0.8
    update_30_of_copy       the same of thirty seeds, in one pass over θ; at least 0.8
    load_over_bus           writing a member from θ in host memory ÷ copying θ over the bus from page-locked memory; at most 1.2
    peak_over_weights       of GPU memory meanwhile, over the weights; at most 1.10
    usual_over_perturbed    adding torch.randn, and later subtracting it ÷ writing a member
    usual_over_update       an update of 30 seeds with torch.randn ÷ ours
    …_ExW_of_copy           the same bandwidths, with Triton programs of E elements and W warps
    …bits_equal             1 (true) when all samples have the reference's bits: of a member, of one that streamed, of θ after updates
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from benchmarks.common import best_of, lines, machine
from benchmarks.kernels import usual_member, usual_update
from estune.common.types import Member
from estune.noise import kernels, reference, stream
from estune.theta.shared_memory import SharedTensors
from estune.theta.theta import Theta

Shapes = dict[str, tuple[int, ...]]
Figures = dict[str, float | str]

SAMPLE = 4096  # elements at either end of a parameter that are compared with the reference
COPIED = 1 << 30  # elements of the copy that bandwidth is taken from, at most
SEEDS, COEFFICIENTS = (
    list(range(30)),
    [float(np.float32((-1) ** n * 1e-6 * (n + 1))) for n in range(30)],
)
MEMBER = Member(7, -1, 1e-3, "iid", 0)
# elements and warps of a Triton program; the default, 2048 and 4, is measured anyway
BLOCKS = ((1024, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))


def qwen(
    hidden: int, layers: int, heads: int, key_heads: int, intermediate: int, vocabulary: int
) -> Shapes:
    """Of a Qwen2 whose embeddings are untied."""
    keys = hidden // heads * key_heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        for name, rows in {"q": hidden, "k": keys, "v": keys}.items():
            shapes |= {
                f"{layer}self_attn.{name}_proj.weight": (rows, hidden),
                f"{layer}self_attn.{name}_proj.bias": (rows,),
            }
        shapes |= {f"{layer}self_attn.o_proj.weight": (hidden, hidden)}
        shapes |= {
            f"{layer}mlp.{name}_proj.weight": (intermediate, hidden) for name in ("gate", "up")
        }
        shapes |= {f"{layer}mlp.down_proj.weight": (hidden, intermediate)}
        shapes |= {
            f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


# arguments of `qwen`
SIZES = {"qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064), "tiny": (28, 2, 7, 1, 96, 3001)}
MODELS = {name: qwen(*size) for name, size in SIZES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parameters-like",
        choices=MODELS,
        default="qwen2.5-7b",
        help="whose shapes the parameters have [qwen2.5-7b]",
    )
    parser.add_argument(
        "--device",
        default="cuda",
        help="cuda, cuda:1, or cpu for torch's kernels on CPU tensors in its place [cuda]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON objects and nothing else")
    asked = parser.parse_args()
    device, shapes = torch.device(asked.device), MODELS[asked.parameters_like]
    if device.type != "cpu" and not (torch.cuda.is_available() and kernels.compiled(device.type)):
        print(
            "benchmarks.gpu: needs a CUDA GPU and Triton, and finds none; --device cpu --parameters-like tiny tries it without",
            file=sys.stderr,
        )
        return 2
    if not asked.json:
        print(machine())
    for figures in measured(shapes, device):
        print(json.dumps(figures) if asked.json else lines(figures), flush=True)
    return 0


def measured(shapes: Shapes, device: torch.device) -> Iterator[Figures]:
    """Yield figures as they are measured."""
    if device.type == "cpu":
        stream_on_a_cpu()
    yield from_host(shapes, device)  # first, while nothing else is on the device
    if device.type == "cpu":
        stand_in()
    yield from on_device(shapes, device)


def on_device(shapes: Shapes, device: torch.device) -> Iterator[Figures]:
    """Figures with θ on the device."""
    count = sum(map(math.prod, shapes.values()))
    copied = copy_bandwidth(min(count, COPIED), device)
    theta = Theta(
        filled({name: torch.empty(shape, device=device) for name, shape in shapes.items()})
    )
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device)
        for name, shape in shapes.items()
    }
    yield {"parameters": count, "copy_bytes_a_second": copied}
    write(theta, weights)
    yield {"bits_equal": same_member(theta, weights)}
    seconds = timed_operations(theta, weights, device)
    for name, each in BYTES.items():
        yield {
            f"{name}_seconds": seconds[name],
            f"{name}_of_copy": each * count / seconds[name] / copied,
        }
    yield {"update_bits_equal": same_update(theta)}
    yield from usual_way(weights, seconds, device)
    yield from other_blocks(theta, weights, device, count / copied)


BYTES = {"perturbed": 6, "update_1": 8, "update_30": 8}  # read and written per parameter


def timed_operations(
    theta: Theta, weights: dict[str, torch.Tensor], device: torch.device
) -> dict[str, float]:
    """Seconds that each operation in BYTES takes."""
    runs: dict[str, Callable[[], object]] = {
        "perturbed": lambda: write(theta, weights),
        "update_1": lambda: update(theta, 1),
        "update_30": lambda: update(theta, len(SEEDS)),
    }
    return {name: timed(run, device) for name, run in runs.items()}


def usual_way(
    weights: dict[str, torch.Tensor], ours: dict[str, float], device: torch.device
) -> Iterator[Figures]:
    """Time of the same work by torch.randn, in the model's dtype, relative to ours."""
    yield {
        "usual_over_perturbed": timed(lambda: usual_member(weights), device, 1) / ours["perturbed"]
    }
    yield {
        "usual_over_update": timed(lambda: usual_update(weights, len(SEEDS)), device, 1)
        / ours["update_30"]
    }


def other_blocks(
    theta: Theta, weights: dict[str, torch.Tensor], device: torch.device, copy_seconds: float
) -> Iterator[Figures]:
    """Bandwidths with other sizes of Triton's programs.

    Args:
        copy_seconds: what a copy takes for one byte per parameter.
    """
    backend: Any = kernels.on_device(device.type)
    if not hasattr(backend, "LAUNCH"):
        yield {"other_blocks": "needs Triton"}
        return
    for elements, warps in BLOCKS:
        backend._SIZE, backend.LAUNCH["num_warps"] = elements, warps
        seconds = timed_operations(theta, weights, device)
        yield {
            f"{name}_{elements}x{warps}_of_copy": each * copy_seconds / seconds[name]
            for name, each in BYTES.items()
        }


def write(theta: Theta, weights: dict[str, torch.Tensor]) -> None:
    for _ in theta.perturbed(replace(MEMBER, version=theta.version), weights.__getitem__):
        pass


def update(theta: Theta, seeds: int) -> None:
    theta.update(SEEDS[:seeds], COEFFICIENTS[:seeds], noise="iid", version=theta.version)


def from_host(shapes: Shapes, device: torch.device) -> Figures:
    """Figures with θ in host memory, from which members stream."""
    theta = in_host_memory(shapes)
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device)
        for name, shape in shapes.items()
    }
    held = sum(tensor.nbytes for tensor in weights.values())
    load = timed(lambda: write(theta, weights), device)
    peak = (
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else held
    )  # not measured on a CPU
    equal = same_member(theta, weights)
    weights.clear()
    bus = bus_seconds(theta, device)
    return {
        "load_seconds": load,
        "bus_seconds": bus,
        "load_over_bus": load / bus,
        "bus_bytes_a_second": sum(tensor.nbytes for tensor in theta.tensors.values()) / bus,
        "peak_over_weights": peak / held,
        "streamed_bits_equal": equal,
    }


def in_host_memory(shapes: Shapes) -> Theta:
    """A random θ in memory that can be page-locked."""
    shared = SharedTensors(shapes)
    return Theta(filled(shared.tensors), shared=shared)


def bus_seconds(theta: Theta, device: torch.device) -> float:
    """Seconds to copy θ to the device."""
    buffer = torch.empty(max(tensor.numel() for tensor in theta.tensors.values()), device=device)
    return timed(
        lambda: [
            buffer[: tensor.numel()].copy_(tensor.view(-1), non_blocking=True)
            for tensor in theta.tensors.values()
        ],
        device,
    )


def timed(run: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Seconds that `run` takes, until the device is idle; the best of `times`."""
    module: Any = torch.get_device_module(device)
    return best_of(times, lambda: (run(), module.synchronize(device)))[0]


def copy_bandwidth(elements: int, device: torch.device) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device)


def filled(theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random values, which repeat: they only have to be there."""
    device = next(iter(theta.values())).device
    some = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(device)
    for tensor in theta.values():
        for part in torch.split(tensor.view(-1), len(some)):
            part.copy_(some[: part.numel()])
    return theta


def same_member(theta: Theta, weights: dict[str, torch.Tensor]) -> bool:
    """Whether `weights` are MEMBER's: the reference's bits, at both ends of every parameter."""
    written, scale = samples(weights), np.float32(MEMBER.sign) * np.float32(MEMBER.sigma)
    exact = {
        at: theta.numpy() + scale * epsilon(MEMBER.seed, *at, theta.numel())
        for at, theta in samples(theta.tensors).items()
    }
    return all(
        torch.equal(written[at], torch.from_numpy(values).bfloat16())
        for at, values in exact.items()
    )


def same_update(theta: Theta) -> bool:
    """Whether an update of all seeds gives θ the reference's bits there."""
    before = samples(theta.tensors)
    theta.update(SEEDS, COEFFICIENTS, noise="iid", version=theta.version)
    return all(
        torch.equal(theta, before[at] + delta(*at, theta.numel()))
        for at, theta in samples(theta.tensors).items()
    )


def delta(name: str, start: int, size: int) -> torch.Tensor:
    total: np.ndarray = np.zeros(size, np.float32)
    for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
        total = total + np.float32(coefficient) * epsilon(seed, name, start, size)
    return torch.from_numpy(total)


def samples(tensors: dict[str, torch.Tensor]) -> dict[tuple[str, int], torch.Tensor]:
    """(name, first element) → some elements from there on, on the CPU."""
    starts = {
        (name, start): tensor.view(-1)
        for name, tensor in tensors.items()
        for start in (0, max(0, tensor.numel() - SAMPLE))
    }
    return {
        (name, start): flat[start : start + SAMPLE].cpu().clone()
        for (name, start), flat in starts.items()
    }


def epsilon(seed: int, name: str, start: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    reference.fill(seed, stream(name), start, out)
    return out


def stream_on_a_cpu() -> None:
    """From now on, stream members from θ in host memory to CPU tensors as to a GPU's."""
    kernels.compiled = lambda kind: True  # type: ignore[assignment]


def stand_in() -> None:
    """From now on, treat CPU tensors as a GPU's.

    The kernels are torch's, or Triton's under TRITON_INTERPRET=1.
    """
    name = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "torch"
    backend = import_module(f"estune.noise.{name}")
    kernels.on_device = lambda kind: backend  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
