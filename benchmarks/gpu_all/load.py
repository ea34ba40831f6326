"""Time the transformers engine with Qwen2.5-7B's shapes: loading members, and generating.

python -m benchmarks.gpu_all.load [--cpu]

θ is first in host memory, then on the GPU.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import gpu
from benchmarks.common import word_tokenizer
from benchmarks.gpu_all import print_figures
from estune.config import ESConfig
from estune.engines.transformers import TransformersEngine
from estune.theta.parameters import Layout
from estune.theta.theta import Theta

PROMPTS = 64
PROMPT_TOKENS = 32
TOKENS = 64


def main() -> None:
    on_cpu = sys.argv[1:] == ["--cpu"]
    device = torch.device("cpu" if on_cpu else "cuda")
    for figures in measured("tiny" if on_cpu else "qwen2.5-7b", device):
        print_figures(figures)


def measured(size: str, device: torch.device) -> Iterator[gpu.Figures]:
    """Yield figures as they are measured.

    θ is in host memory first, because θ on the GPU would add to that part's peak of GPU memory.
    """
    engine = random_engine(size, device)
    if device.type == "cpu":
        gpu.stream_on_a_cpu()
    host: gpu.Figures = {}
    for figures in from_host(engine, gpu.in_host_memory(gpu.MODELS[size]), device):
        host |= figures
        yield figures
    generation = generation_seconds(engine, gpu.SIZES[size][-1], device)
    load = float(host["load_host_seconds"])
    yield {"generation_seconds": generation, "load_host_over_generation": load / generation}
    if device.type == "cpu":
        gpu.stand_in()
    yield from from_device(engine, gpu.MODELS[size], generation, device)


def random_engine(size: str, device: torch.device) -> TransformersEngine:
    """Return an engine with a Qwen2 of that size, in bf16, with random weights."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    hidden, layers, heads, key_heads, intermediate, vocabulary = gpu.SIZES[size]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.eval().requires_grad_(False)
    settings = ESConfig(device=str(device), dtype="bfloat16", generation_batch_size=PROMPTS)
    known = Layout({name: name for name in gpu.MODELS[size]}, {})
    return TransformersEngine(Path(), known, settings, model, word_tokenizer(vocabulary))


def from_host(
    engine: TransformersEngine, theta: Theta, device: torch.device
) -> Iterator[gpu.Figures]:
    """Measure a load with θ in host memory, relative to the bus, and its peak of GPU memory."""
    weights = sum(engine.read(name).nbytes for name in theta.tensors)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = load_seconds(engine, theta, device)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else weights  # not measured on a CPU
    yield {"load_host_seconds": seconds, "load_peak_over_weights": peak / weights}
    yield {"load_host_over_bus": seconds / gpu.bus_seconds(theta, device)}
    engine.check(theta, gpu.MEMBER)
    yield {"host_held": True}


def from_device(
    engine: TransformersEngine, shapes: gpu.Shapes, generation: float, device: torch.device
) -> Iterator[gpu.Figures]:
    """Measure a load with θ on the GPU, relative to a copy on the GPU and to generating."""
    theta = Theta(gpu.filled(gpu.empty(shapes, torch.float32, device)))
    count = sum(tensor.numel() for tensor in theta.tensors.values())
    seconds = load_seconds(engine, theta, device)
    copied = gpu.copy_bandwidth(min(count, gpu.COPIED), device)
    yield {"load_device_seconds": seconds, "load_device_over_generation": seconds / generation}
    yield {"load_device_of_copy": gpu.BYTES["perturbed"] * count / seconds / copied}
    engine.check(theta, gpu.MEMBER)
    yield {"device_held": True}


def load_seconds(engine: TransformersEngine, theta: Theta, device: torch.device) -> float:
    return gpu.timed(lambda: engine.load(theta, gpu.MEMBER), device)


def generation_seconds(engine: TransformersEngine, vocabulary: int, device: torch.device) -> float:
    """Return the seconds to generate PROMPTS × TOKENS tokens, after one call to warm up."""
    prompts = [
        [(31 * row + 7 * at) % vocabulary for at in range(PROMPT_TOKENS)] for row in range(PROMPTS)
    ]
    return gpu.timed(lambda: engine.generate(prompts, max_completion_length=TOKENS), device, 1)


if __name__ == "__main__":
    main()
