"""What estune promises about GPUs: figures and their bars, by part of `benchmarks/gpu_all.sh`."""

from benchmarks.registry import Benchmark, Ratio


def _true(name: str, description: str) -> Ratio:
    return Ratio(name, f"{description} (1: yes)", least=1)


_LEARNT = tuple(
    Ratio(
        f"{reward}_{method}_gain",
        f"gain of {method} in the {reward} reward on its training prompts, greedily",
    )
    for reward in ("sparse", "dense")
    for method in ("es", "es-paper")
)

PARTS = (
    Benchmark(
        "tests",
        "benchmarks.gpu_all.tests",
        "the tests that need a GPU",
        (
            Ratio("tests_failed", "tests that failed on the GPU", most=0),
            Ratio("tests_passed", "tests that passed", least=1),
        ),
    ),
    Benchmark(
        "kernels",
        "benchmarks.gpu",
        "members and updates of θ with the shapes of Qwen2.5-7B",
        (
            _true("bits_equal", "a member from θ on the GPU has the CPU's bits"),
            _true("streamed_bits_equal", "a member from θ in host memory has the CPU's bits"),
            _true("update_bits_equal", "an updated θ has the CPU's bits"),
            Ratio(
                "perturbed_of_copy",
                "bandwidth of writing a member ÷ that of a copy on the GPU",
                least=0.8,
            ),
            Ratio(
                "update_1_of_copy", "bandwidth of an update of one seed ÷ that of a copy", least=0.8
            ),
            Ratio(
                "update_30_of_copy",
                "bandwidth of an update of thirty seeds ÷ that of a copy",
                least=0.8,
            ),
            Ratio(
                "load_over_bus", "a member from θ in host memory ÷ θ copied over the bus", most=1.2
            ),
            Ratio(
                "peak_over_weights",
                "GPU memory while writing from host memory ÷ the weights",
                most=1.10,
            ),
            Ratio(
                "usual_over_perturbed",
                "the usual way with torch.randn ÷ writing a member",
                least=10,
            ),
            Ratio("usual_over_update", "the usual update of 30 seeds ÷ ours", least=10),
        ),
    ),
    Benchmark(
        "load",
        "benchmarks.gpu_all.load",
        "members of a model with the shapes of Qwen2.5-7B, in the transformers engine",
        (
            _true("device_held", "θ on the GPU: the engine's weights are the member's, to the bit"),
            _true(
                "host_held", "θ in host memory: the engine's weights are the member's, to the bit"
            ),
            Ratio(
                "load_host_over_bus",
                "loading a member, θ in host memory ÷ θ copied over the bus",
                most=1.2,
            ),
            Ratio(
                "load_device_of_copy",
                "bandwidth of loading, θ on the GPU ÷ that of a copy",
                least=0.8,
            ),
            Ratio(
                "load_peak_over_weights",
                "GPU memory while loading from host memory ÷ the weights",
                most=1.10,
            ),
            Ratio(
                "load_device_over_generation",
                "loading, θ on the GPU ÷ generating 64 × 64 tokens",
                most=0.01,
            ),
            Ratio(
                "load_host_over_generation", "loading, θ in host memory ÷ generating 64 × 64 tokens"
            ),
        ),
    ),
    Benchmark(
        "model",
        "benchmarks.gpu_all.model",
        "a run of SmolLM2-135M",
        (
            _true("digest_equal", "the GPU's journal gives the same θ on the CPU"),
            Ratio("step_over_generation", "a step ÷ its generation", most=1.01),
            Ratio("tokens_per_second", "completion tokens per second"),
        ),
    ),
    Benchmark(
        "learn",
        "benchmarks.gpu_all.learn",
        "learning with more tokens than a CPU can generate",
        _LEARNT,
    ),
)
NAMES = tuple(part.name for part in PARTS)
