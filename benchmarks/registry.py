"""The benchmarks of `make bench`: the module that measures each, its ratios and their bars."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """A figure that a benchmark prints.

    It may have a bar: at most `most`, or at least `least`. Without a bar, smaller is better.
    """

    name: str
    description: str
    most: float | None = None
    least: float | None = None
    margin: float = 0.02  # worse than the baseline by this part is still within the noise

    @property
    def bar(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "" if self.most is None else f"≤ {self.most:g}"

    def met(self, value: float) -> bool:
        if self.least is not None:
            return value >= self.least
        return self.most is None or value <= self.most

    def worse(self, value: float, baseline: float) -> bool:
        """Whether `value` is worse than the baseline by more than the margin."""
        change = value / baseline - 1
        return (change if self.least is None else -change) > self.margin


@dataclass(frozen=True)
class Benchmark:
    """A module whose `python -m module --json` prints the ratios."""

    name: str
    module: str
    description: str
    ratios: Sequence[Ratio]


# A step's ratios are just above 1, so their margin is small. The kernels' ratios vary most.
BENCHMARKS = (
    Benchmark(
        "kernels",
        "benchmarks.kernels",
        "writing members and updating θ",
        (
            Ratio("perturbed_over_copy", "writing a member ÷ copying θ", most=2, margin=0.1),
            Ratio(
                "usual_over_perturbed",
                "the usual way with torch.randn ÷ writing a member",
                least=10,
                margin=0.1,
            ),
            Ratio(
                "usual_over_update", "the usual update of 30 seeds ÷ ours", least=10, margin=0.15
            ),
            Ratio(
                "perturbed_scaling_on_two_cores",
                "writing a member with one thread ÷ with two",
                least=1.8,
                margin=0.05,
            ),
            Ratio(
                "update_scaling_on_two_cores",
                "the update with one thread ÷ with two",
                least=1.8,
                margin=0.05,
            ),
        ),
    ),
    Benchmark(
        "experts",
        "benchmarks.experts",
        "a mixture of experts: writing members, and the proof at the start",
        (
            Ratio("member_over_copy", "writing a member ÷ copying θ", most=2.5, margin=0.1),
            Ratio(
                "transposed_over_copy", "the same, with transposed experts ÷ copying θ", margin=0.1
            ),
            Ratio(
                "proof_over_generation",
                "comparing fused parameters with the files ÷ generating for one member",
                most=1,
                margin=0.5,
            ),
        ),
    ),
    Benchmark(
        "step",
        "benchmarks.step",
        "a step on transformers, and its memory",
        (
            Ratio(
                "step_over_generation",
                "a step on transformers ÷ the generation in it",
                most=1.01,
                margin=0.005,
            ),
            Ratio(
                "memory_over_bar",
                "memory of a run ÷ (1.25 × (model + θ) + what generating takes)",
                most=1,
            ),
        ),
    ),
    Benchmark(
        "engines",
        "benchmarks.engines",
        "a step on vLLM, and vLLM compared with transformers",
        (
            Ratio(
                "step_over_generation_vllm",
                "a step on vLLM ÷ the generation in it",
                most=1.02,
                margin=0.005,
            ),
            Ratio(
                "vllm_over_transformers",
                "tokens per second, vLLM ÷ transformers",
                least=2.5,
                margin=0.1,
            ),
        ),
    ),
    Benchmark(
        "requests",
        "benchmarks.requests",
        "requests that arrive while others run",
        (
            Ratio(
                "together_over_generate_transformers",
                "tokens per second of 16 requests ÷ of one generate, transformers",
                least=0.8,
                margin=0.1,
            ),
            Ratio(
                "together_over_generate_vllm",
                "tokens per second of 16 requests ÷ of one generate, vLLM",
                least=0.8,
                margin=0.1,
            ),
        ),
    ),
    Benchmark(
        "workers",
        "benchmarks.workers",
        "a Ray worker compared with the trainer's own process",
        (
            Ratio(
                "ray_over_local", "a step on one Ray worker ÷ in the trainer's process", most=1.03
            ),
        ),
    ),
    Benchmark(
        "scheduler",
        "benchmarks.scheduler",
        "distributing members over workers, simulated",
        (
            Ratio(
                "simulated_over_ideal",
                "30 members on 8 workers ÷ ideal; 1.25 with whole members",
                most=1.25,
                margin=0.001,
            ),
            Ratio(
                "scheduler_over_core",
                "CPU time of scheduling 10,000 members on 1,000 workers ÷ the step's time",
                margin=0.5,
            ),
        ),
    ),
    Benchmark(
        "rewards",
        "benchmarks.rewards",
        "what rewards add to generation",
        (
            Ratio(
                "judge_over_generation",
                "a step with an async judge of 10 ms ÷ its generation",
                most=1.02,
                margin=0.005,
            ),
            Ratio(
                "plain_over_generation",
                "the same with a function that sleeps 10 ms; 1.033 is ideal",
                margin=0.005,
            ),
            Ratio(
                "hang_over_bound",
                "a reward that hangs ÷ ⌈hangs ÷ reward processes⌉ × reward_timeout",
                margin=0.05,
            ),
        ),
    ),
    Benchmark(
        "rl",
        "benchmarks.rl",
        "ES compared with TRL's GRPO, 16 completions of 32 tokens",
        (
            Ratio("es_over_grpo_memory", "memory of ES in fp32 ÷ GRPO's", most=0.2, margin=0.05),
            Ratio(
                "es_over_grpo_time",
                "time of a member in fp32 ÷ of a GRPO step with as many completions",
                margin=0.1,
            ),
            Ratio(
                "es_default_over_grpo_memory",
                "memory of ES in its default dtype ÷ GRPO's in fp32",
                margin=0.05,
            ),
            Ratio(
                "es_over_checkpointed_grpo_memory",
                "memory of ES in fp32 ÷ GRPO's with gradient checkpointing",
                margin=0.05,
            ),
        ),
    ),
)
