"""Compare writing members and updating θ on a GPU with copies on it, and over the bus.

    python -m benchmarks.gpu [--parameters-like qwen2.5-7b] [--json]
    python -m benchmarks.gpu --parameters-like tiny --device cpu   # the same code, on a CPU

Weights are random and in bf16, θ is in fp32, both with a real model's shapes. A copy's bandwidth
counts bytes read and written. Each figure is printed at once; with --json, as one object per line.

    perturbed_of_copy     bandwidth of writing a member from θ on the GPU ÷ of a copy; at least 0.8
    update_1_of_copy      the same of an update with one seed; at least 0.8
    update_30_of_copy     the same of an update with 30 seeds, in one pass over θ; at least 0.8
    load_over_bus         writing a member from θ in host memory ÷ copying θ over the bus, from
                          page-locked memory; at most 1.2
    peak_over_weights     peak of GPU memory meanwhile ÷ the weights; at most 1.10
    usual_over_perturbed  adding torch.randn, and later subtracting it ÷ writing a member
    usual_over_update     an update of 30 seeds with torch.randn ÷ ours
    …_ExW_of_copy         the same bandwidths, with Triton programs of E elements and W warps
    …bits_equal           1 (true) if all samples equal the reference to the bit: of a member, of a
                          member that was streamed, of θ after an update
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
from benchmarks.kernels import Weights, usual_member, usual_update
from estune.common.types import Member, ThetaUpdate
from estune.noise import kernels, reference, stream
from estune.theta.shared_memory import SharedTensors
from estune.theta.theta import Theta

Shapes = dict[str, tuple[int, ...]]
Figures = dict[str, float | str]

SAMPLE = 4096  # elements at each end of a parameter that are compared with the reference
COPIED = 1 << 30  # at most so many elements are copied to measure bandwidth
SEEDS = list(range(30))
COEFFICIENTS = [float(np.float32((-1) ** n * 1e-6 * (n + 1))) for n in range(30)]
MEMBER = Member(7, -1, 1e-3, "iid", 0)
BYTES = {"perturbed": 6, "update_1": 8, "update_30": 8}  # read and written per parameter
# elements and warps of a Triton program, in addition to the default (2048 and 4)
BLOCKS = ((1024, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))


def qwen(
    hidden: int, layers: int, heads: int, key_heads: int, intermediate: int, vocabulary: int
) -> Shapes:
    """Return the shapes of a Qwen2 with untied embeddings."""
    keys = hidden // heads * key_heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        for name, rows in {"q": hidden, "k": keys, "v": keys}.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


# arguments of `qwen`
SIZES = {"qwen2.5-7b": (3584, 28, 28, 4, 18944, 152064), "tiny": (28, 2, 7, 1, 96, 3001)}
MODELS = {name: qwen(*size) for name, size in SIZES.items()}


def main() -> int:
    options = parse_options()
    device = torch.device(options.device)
    on_gpu = torch.cuda.is_available() and kernels.compiled(device.type)
    if device.type != "cpu" and not on_gpu:
        print(
            "benchmarks.gpu: no CUDA GPU with Triton found; without one, try --device cpu "
            "--parameters-like tiny",
            file=sys.stderr,
        )
        return 2
    if not options.json:
        print(machine())
    for figures in measured(MODELS[options.parameters_like], device):
        print(json.dumps(figures) if options.json else lines(figures), flush=True)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--parameters-like",
        choices=MODELS,
        default="qwen2.5-7b",
        help="the model with these shapes [qwen2.5-7b]",
    )
    add("--device", default="cuda", help="cuda, cuda:1, or cpu to test without a GPU [cuda]")
    add("--json", action="store_true", help="print JSON objects and nothing else")
    return parser.parse_args()


def measured(shapes: Shapes, device: torch.device) -> Iterator[Figures]:
    """Yield figures as they are measured."""
    if device.type == "cpu":
        stream_on_a_cpu()
    yield from_host(shapes, device)  # first, while the device is empty
    if device.type == "cpu":
        stand_in()
    yield from on_device(shapes, device)


def on_device(shapes: Shapes, device: torch.device) -> Iterator[Figures]:
    """Measure with θ on the device."""
    count = sum(map(math.prod, shapes.values()))
    copied = copy_bandwidth(min(count, COPIED), device)
    theta = Theta(filled(empty(shapes, torch.float32, device)))
    weights = empty(shapes, torch.bfloat16, device)
    yield {"parameters": count, "copy_bytes_per_second": copied}
    write(theta, weights)
    yield {"bits_equal": same_member(theta, weights)}
    seconds = timed_operations(theta, weights, device)
    for name, bytes_each in BYTES.items():
        bandwidth = bytes_each * count / seconds[name]
        yield {f"{name}_seconds": seconds[name], f"{name}_of_copy": bandwidth / copied}
    yield {"update_bits_equal": same_update(theta)}
    yield from usual_way(weights, seconds, device)
    yield from other_blocks(theta, weights, device, count / copied)


def timed_operations(theta: Theta, weights: Weights, device: torch.device) -> dict[str, float]:
    """Return the seconds of each operation in BYTES."""
    runs: dict[str, Callable[[], object]] = {
        "perturbed": lambda: write(theta, weights),
        "update_1": lambda: update(theta, 1),
        "update_30": lambda: update(theta, len(SEEDS)),
    }
    return {name: timed(run, device) for name, run in runs.items()}


def usual_way(weights: Weights, ours: dict[str, float], device: torch.device) -> Iterator[Figures]:
    """Time the same work with torch.randn in the model's dtype, relative to ours."""
    member = timed(lambda: usual_member(weights), device, 1)
    yield {"usual_over_perturbed": member / ours["perturbed"]}
    update_all = timed(lambda: usual_update(weights, len(SEEDS)), device, 1)
    yield {"usual_over_update": update_all / ours["update_30"]}


def other_blocks(
    theta: Theta, weights: Weights, device: torch.device, copy_seconds: float
) -> Iterator[Figures]:
    """Measure bandwidths with other sizes of Triton programs.

    Args:
        copy_seconds: duration of a copy of one byte per parameter.
    """
    backend: Any = kernels.on_device(device.type)
    if not hasattr(backend, "LAUNCH"):
        yield {"other_blocks": "needs Triton"}
        return
    for elements, warps in BLOCKS:
        backend._SIZE = elements
        backend.LAUNCH["num_warps"] = warps
        seconds = timed_operations(theta, weights, device)
        yield {
            f"{name}_{elements}x{warps}_of_copy": bytes_each * copy_seconds / seconds[name]
            for name, bytes_each in BYTES.items()
        }


def write(theta: Theta, weights: Weights) -> None:
    for _ in theta.perturbed(replace(MEMBER, version=theta.version), weights.__getitem__):
        pass


def update(theta: Theta, seeds: int) -> None:
    theta.update(
        ThetaUpdate(SEEDS[:seeds], COEFFICIENTS[:seeds], noise="iid", version=theta.version)
    )


def from_host(shapes: Shapes, device: torch.device) -> Figures:
    """Measure with θ in host memory, from which members are streamed."""
    theta = in_host_memory(shapes)
    weights = empty(shapes, torch.bfloat16, device)
    size = sum(tensor.nbytes for tensor in weights.values())
    load = timed(lambda: write(theta, weights), device)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else size  # not measured on a CPU
    equal = same_member(theta, weights)
    weights.clear()
    bus = bus_seconds(theta, device)
    return {
        "load_seconds": load,
        "bus_seconds": bus,
        "load_over_bus": load / bus,
        "bus_bytes_per_second": sum(tensor.nbytes for tensor in theta.tensors.values()) / bus,
        "peak_over_weights": peak / size,
        "streamed_bits_equal": equal,
    }


def in_host_memory(shapes: Shapes) -> Theta:
    """Return a random θ in memory that can be page-locked."""
    shared = SharedTensors.create(shapes)
    return Theta(filled(shared.tensors), shared=shared)


def empty(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Weights:
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def bus_seconds(theta: Theta, device: torch.device) -> float:
    """Return the seconds to copy θ to the device."""
    tensors = [tensor.view(-1) for tensor in theta.tensors.values()]
    buffer = torch.empty(max(map(len, tensors)), device=device)

    def copy() -> None:
        for tensor in tensors:
            buffer[: len(tensor)].copy_(tensor, non_blocking=True)

    return timed(copy, device)


def timed(run: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Return the seconds until `run` has finished on the device, the best of `times`."""
    module: Any = torch.get_device_module(device)
    return best_of(times, lambda: (run(), module.synchronize(device)))[0]


def copy_bandwidth(elements: int, device: torch.device) -> float:
    """Return the bytes per second that a copy on the device reads and writes."""
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device)


def filled(theta: Weights) -> Weights:
    """Fill the tensors with random values, which repeat; return them."""
    device = next(iter(theta.values())).device
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    values = values.to(device)
    for tensor in theta.values():
        for part in torch.split(tensor.view(-1), len(values)):
            part.copy_(values[: part.numel()])
    return theta


def same_member(theta: Theta, weights: Weights) -> bool:
    """Whether samples of `weights` have the reference's bits of MEMBER."""
    written = samples(weights)
    scale = np.float32(MEMBER.sign) * np.float32(MEMBER.sigma)
    for at, values in samples(theta.tensors).items():
        exact = values.numpy() + scale * epsilon(MEMBER.seed, *at, len(values))
        if not torch.equal(written[at], torch.from_numpy(exact).bfloat16()):
            return False
    return True


def same_update(theta: Theta) -> bool:
    """Whether samples of θ have the reference's bits after an update with all seeds."""
    before = samples(theta.tensors)
    update(theta, len(SEEDS))
    after = samples(theta.tensors)
    return all(
        torch.equal(after[at], values + delta(*at, len(values))) for at, values in before.items()
    )


def delta(name: str, start: int, size: int) -> torch.Tensor:
    """Return what an update with all seeds adds to `size` elements from `start`."""
    total: np.ndarray = np.zeros(size, np.float32)
    for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
        total = total + np.float32(coefficient) * epsilon(seed, name, start, size)
    return torch.from_numpy(total)


def samples(tensors: Weights) -> dict[tuple[str, int], torch.Tensor]:
    """Return a copy of both ends of each tensor, by name and first element, on the CPU."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.view(-1)
        for start in (0, max(0, len(flat) - SAMPLE)):
            found[name, start] = flat[start : start + SAMPLE].cpu().clone()
    return found


def epsilon(seed: int, name: str, start: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    reference.fill(seed, stream(name), start, out)
    return out


def stream_on_a_cpu() -> None:
    """From now on, stream members from host memory to CPU tensors, as if these were on a GPU."""
    kernels.compiled = lambda kind: True  # type: ignore[assignment]


def stand_in() -> None:
    """From now on, treat CPU tensors as if they were on a GPU.

    The kernels are torch's, or Triton's if TRITON_INTERPRET=1.
    """
    name = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "torch"
    backend = import_module(f"estune.noise.{name}")
    kernels.on_device = lambda kind: backend  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
