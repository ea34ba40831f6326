"""Writing members and updating θ on a GPU, against its own copy bandwidth, and streaming members from host memory, against the bus.

    python -m benchmarks.gpu [--parameters-like qwen2.5-7b] [--json]
    python -m benchmarks.gpu --parameters-like tiny --device cpu      # the same lines on a CPU: its figures mean nothing

Weights are random, of the shapes that a model has, in bf16; θ is fp32. A copy's bandwidth counts bytes read and written.

    perturbed_of_copy       bandwidth of writing a member from θ on the GPU ÷ that of a copy; at least 0.8
    update_1_of_copy        the same of an update of one seed; at least 0.8
    update_30_of_copy       the same of thirty seeds, in one pass over θ; at least 0.8
    load_over_bus           writing a member from θ in host memory ÷ copying θ over the bus from page-locked memory; at most 1.2
    peak_over_weights       of GPU memory meanwhile, over the weights; at most 1.10
    …bits_equal             1 (true) when all samples have the reference's bits: of a member, of one that streamed, of θ after updates
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import best_of, show
from estune.center import Center
from estune.member import Member
from estune.noise import kernels, reference, stream
from estune.shared import Shared

Shapes = dict[str, tuple[int, ...]]

SAMPLE = 4096  # elements at either end of a parameter that are compared with the reference
COPIED = 1 << 30  # elements of the copy that bandwidth is taken from, at most
SEEDS, COEFFICIENTS = list(range(30)), [float(np.float32((-1) ** n * 1e-6 * (n + 1))) for n in range(30)]
MEMBER = Member(7, -1, 1e-3, "iid", 0)


def qwen(hidden: int, layers: int, heads: int, key_heads: int, intermediate: int, vocabulary: int) -> Shapes:
    """Of a Qwen2 whose embeddings are untied."""
    keys = hidden // heads * key_heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        for name, rows in {"q": hidden, "k": keys, "v": keys}.items():
            shapes |= {f"{layer}self_attn.{name}_proj.weight": (rows, hidden), f"{layer}self_attn.{name}_proj.bias": (rows,)}
        shapes |= {f"{layer}self_attn.o_proj.weight": (hidden, hidden)}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (intermediate, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (hidden, intermediate)}
        shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


MODELS = {"qwen2.5-7b": qwen(3584, 28, 28, 4, 18944, 152064), "tiny": qwen(28, 2, 7, 1, 96, 3001)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters-like", choices=MODELS, default="qwen2.5-7b", help="whose shapes the parameters have [qwen2.5-7b]")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for torch's kernels on CPU tensors in its place [cuda]")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    asked = parser.parse_args()
    device, shapes = torch.device(asked.device), MODELS[asked.parameters_like]
    if device.type != "cpu" and not (torch.cuda.is_available() and kernels.compiled(device.type)):
        print(
            "benchmarks.gpu: needs a CUDA GPU and Triton, and finds none; --device cpu --parameters-like tiny tries it without",
            file=sys.stderr,
        )
        return 2
    streamed = from_host(shapes, device)  # first, while nothing else is on the device
    show(on_device(shapes, device) | streamed, asked.json)
    return 0


def on_device(shapes: Shapes, device: torch.device) -> dict[str, float]:
    """θ on the device."""
    if device.type == "cpu":
        stand_in()
    count = sum(map(math.prod, shapes.values()))
    copied = copy_bandwidth(min(count, COPIED), device)
    center = Center(filled({name: torch.empty(shape, device=device) for name, shape in shapes.items()}))
    weights = {name: torch.empty(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes.items()}
    figures: dict[str, float] = {"parameters": count, "copy_bytes_a_second": copied}
    list(center.perturbed(MEMBER, weights.__getitem__))
    figures["bits_equal"] = same_member(center, weights)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "perturbed": (6, lambda: list(center.perturbed(MEMBER, weights.__getitem__))),
        "update_1": (8, lambda: center.update(SEEDS[:1], COEFFICIENTS[:1], noise="iid", version=center.version)),
        "update_30": (8, lambda: center.update(SEEDS, COEFFICIENTS, noise="iid", version=center.version)),
    }
    for name, (each, run) in runs.items():
        seconds = timed(run, device)
        figures |= {f"{name}_seconds": seconds, f"{name}_bytes": each * count, f"{name}_of_copy": each * count / seconds / copied}
    return figures | {"update_bits_equal": same_update(center)}


def from_host(shapes: Shapes, device: torch.device) -> dict[str, float]:
    """θ in host memory, from where members stream."""
    if device.type == "cpu":
        kernels.compiled = lambda kind: True  # type: ignore[assignment]
    shared = Shared(shapes)
    center = Center(filled(shared.tensors), shared=shared)
    weights = {name: torch.empty(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes.items()}
    held = sum(tensor.nbytes for tensor in weights.values())
    load = timed(lambda: list(center.perturbed(MEMBER, weights.__getitem__)), device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else held  # there is no telling on a CPU
    equal = same_member(center, weights)
    weights.clear()
    buffer = torch.empty(max(map(math.prod, shapes.values())), device=device)
    bus = timed(lambda: [buffer[: theta.numel()].copy_(theta.view(-1), non_blocking=True) for theta in center.theta.values()], device)
    return {
        "load_seconds": load,
        "bus_seconds": bus,
        "load_over_bus": load / bus,
        "bus_bytes_a_second": sum(theta.nbytes for theta in center.theta.values()) / bus,
        "peak_over_weights": peak / held,
        "streamed_bits_equal": equal,
    }


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device is done."""
    module: Any = torch.get_device_module(device)
    return best_of(3, lambda: (run(), module.synchronize(device)))[0]


def copy_bandwidth(elements: int, device: torch.device) -> float:
    """Bytes that a copy on the device reads and writes, a second."""
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    return 2 * source.nbytes / timed(lambda: target.copy_(source), device)


def filled(theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random values, which repeat: they only have to be there."""
    some = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    for tensor in theta.values():
        for part in torch.split(tensor.view(-1), len(some)):
            part.copy_(some[: part.numel()])
    return theta


def same_member(center: Center, weights: dict[str, torch.Tensor]) -> bool:
    """Whether `weights` are MEMBER's: the reference's bits, at both ends of every parameter."""
    written, scale = samples(weights), np.float32(MEMBER.sign) * np.float32(MEMBER.sigma)
    exact = {at: theta.numpy() + scale * epsilon(MEMBER.seed, *at, theta.numel()) for at, theta in samples(center.theta).items()}
    return all(torch.equal(written[at], torch.from_numpy(values).bfloat16()) for at, values in exact.items())


def same_update(center: Center) -> bool:
    """Whether an update of all seeds gives θ the reference's bits there."""
    before = samples(center.theta)
    center.update(SEEDS, COEFFICIENTS, noise="iid", version=center.version)
    return all(torch.equal(theta, before[at] + delta(*at, theta.numel())) for at, theta in samples(center.theta).items())


def delta(name: str, start: int, size: int) -> torch.Tensor:
    total: np.ndarray = np.zeros(size, np.float32)
    for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
        total = total + np.float32(coefficient) * epsilon(seed, name, start, size)
    return torch.from_numpy(total)


def samples(tensors: dict[str, torch.Tensor]) -> dict[tuple[str, int], torch.Tensor]:
    """(name, first element) → some elements from there on, on the CPU."""
    starts = {(name, start): tensor.view(-1) for name, tensor in tensors.items() for start in (0, max(0, tensor.numel() - SAMPLE))}
    return {(name, start): flat[start : start + SAMPLE].cpu().clone() for (name, start), flat in starts.items()}


def epsilon(seed: int, name: str, start: int, size: int) -> np.ndarray:
    out = np.empty(size, np.float32)
    reference.fill(seed, stream(name), start, out)
    return out


def stand_in() -> None:
    """From now on CPU tensors are taken for a device's."""
    from estune.noise import torch as backend

    kernels.on_device = lambda kind: backend  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main())
