"""What estune promises of a GPU: the figures that show it, by the part of `benchmarks/gpu_all.sh` that measures them."""

from benchmarks.registry import Benchmark, Ratio


def _true(name: str, says: str) -> Ratio:
    return Ratio(name, f"{says} (1: yes)", least=1)


_LEARNT = tuple(
    Ratio(f"{reward}_{method}_gain", f"what {method} gained of the {reward} reward on its training prompts, greedy")
    for reward in ("sparse", "dense")
    for method in ("es", "es-paper")
)

PARTS = (
    Benchmark(
        "tests",
        "benchmarks.gpu_all.tests",
        "the tests that need a GPU",
        (Ratio("tests_failed", "tests that failed on the GPU", most=0), Ratio("tests_passed", "tests that passed", least=1)),
    ),
    Benchmark(
        "kernels",
        "benchmarks.gpu",
        "members and updates of θ with the shapes of Qwen2.5-7B",
        (
            _true("bits_equal", "a member from θ on the GPU has the CPU's bits"),
            _true("streamed_bits_equal", "a member from θ in host memory has them"),
            _true("update_bits_equal", "an updated θ has them"),
            Ratio("perturbed_of_copy", "bandwidth of writing a member ÷ of a copy on the GPU", least=0.8),
            Ratio("update_1_of_copy", "the same of an update of one seed", least=0.8),
            Ratio("update_30_of_copy", "the same of thirty seeds", least=0.8),
            Ratio("load_over_bus", "a member from θ in host memory ÷ θ copied over the bus", most=1.2),
            Ratio("peak_over_weights", "GPU memory meanwhile ÷ the weights", most=1.10),
            Ratio("usual_over_perturbed", "the usual way with torch.randn ÷ writing a member", least=10),
            Ratio("usual_over_update", "the usual update of 30 seeds ÷ ours", least=10),
        ),
    ),
    Benchmark(
        "load",
        "benchmarks.gpu_all.load",
        "members of a model of 7B in the transformers engine",
        (
            _true("device_held", "the engine holds a member to the bit, θ on the GPU"),
            _true("host_held", "the same, θ in host memory"),
            Ratio("load_host_over_bus", "loading a member, θ in host memory ÷ θ copied over the bus", most=1.2),
            Ratio("load_device_of_copy", "bandwidth of loading, θ on the GPU ÷ of a copy", least=0.8),
            Ratio("load_peak_over_weights", "GPU memory while loading from host memory ÷ the weights", most=1.10),
            Ratio("load_device_over_generation", "loading, θ on the GPU ÷ generating 64 × 64 tokens", most=0.01),
            Ratio("load_host_over_generation", "loading, θ in host memory ÷ the same"),
        ),
    ),
    Benchmark(
        "model",
        "benchmarks.gpu_all.model",
        "a run of SmolLM2-135M",
        (
            _true("digest_equal", "the journal written on the GPU gives the same θ on the CPU"),
            Ratio("step_over_generation", "a step ÷ the generation in it", most=1.01),
            Ratio("tokens_per_second", "tokens that the engine makes per second"),
        ),
    ),
    Benchmark("learn", "benchmarks.gpu_all.learn", "learning at a budget that a CPU does not reach", _LEARNT),
)
NAMES = tuple(part.name for part in PARTS)
