"""Compare a training step on vLLM with the generation in it, and vLLM with transformers.

    python -m benchmarks.engines [--json]

    step_over_generation_vllm   time of a step (N = 8, 50 Countdown prompts, at most 128 new tokens)
                                ÷ the time of its `generate` calls; at most 1.02
    vllm_over_transformers      new tokens per second with vLLM ÷ with transformers, one member and
                                the same prompts; at least 2.5

N is 8 instead of 30: loading, generating and the update all grow with N, and fixed costs matter
less at 30. Of three steps the first also compiles and the last saves; the one between counts. Each
engine runs in the environment that users have: vLLM in .venv-vllm, transformers in .venv. vLLM's
cache is 1 GiB, which holds all 50 sequences; its default on a CPU is 4 GiB.
"""

import tempfile
import time
from typing import Any

from benchmarks.common import (
    Figures,
    characters,
    checkpoint,
    child,
    options,
    ran_as_child,
    show,
    steps_between,
    vllm_python,
)

MODULE = "benchmarks.engines"
SECONDS = ("generate_seconds", "load_seconds", "update_seconds")
VLLM: dict[str, Any] = {
    "engine": "vllm",
    "vllm_enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 1 << 30},
}


def main() -> None:
    if ran_as_child({"step": step, "rate": rate}):
        return
    given = options(__doc__)
    size = ("2", "4", "8") if given.quick else ("8", "50", "128")
    python = vllm_python()
    on_vllm = child(MODULE, "--child", "step", given.model, *size, python=python)
    vllm = child(MODULE, "--child", "rate", "vllm", given.model, *size[1:], python=python)
    transformers = child(MODULE, "--child", "rate", "transformers", given.model, *size[1:])
    figures = {
        "step_over_generation_vllm": on_vllm["step_time"] / on_vllm["es/generate_seconds"],
        "vllm_over_transformers": vllm["tokens_per_second"] / transformers["tokens_per_second"],
        "vllm_tokens_per_second": vllm["tokens_per_second"],
        "transformers_tokens_per_second": transformers["tokens_per_second"],
        "tokens_per_completion": vllm["tokens_per_completion"],
    }
    show(figures | {name: on_vllm[f"es/{name}"] for name in SECONDS}, given.json)


def step(model: str, members: str, prompts: str, tokens: str) -> Figures:
    """Train with vLLM for three steps; return the metrics of the second."""
    from estune.tasks import get_task

    (second,) = steps_between(
        model,
        get_task("countdown").train(int(prompts)),
        characters,
        population_size=int(members),
        max_steps=3,
        max_completion_length=int(tokens),
        **VLLM,
    )
    return second


def rate(name: str, model: str, prompt_count: str, tokens: str) -> Figures:
    """Generate with two members, after a few prompts to warm up; return the faster one's rate."""
    from estune.common.types import Member
    from estune.tasks import get_task

    engine, theta = loaded(name, model)
    prompts = [row["prompt"] for row in get_task("countdown").train(int(prompt_count))]
    engine.generate(prompts[:8], max_completion_length=8)
    rates = []
    lengths = []
    for sign in (1, -1):
        engine.load(theta, Member(1, sign, 1e-4, "iid", 0))
        started = time.perf_counter()
        completions = engine.generate(prompts, max_completion_length=int(tokens))
        seconds = time.perf_counter() - started
        count = sum(len(completion.ids) for completion in completions)
        lengths.append(count / len(completions))
        rates.append(count / seconds)
    return {"tokens_per_second": max(rates), "tokens_per_completion": sum(lengths) / 2}


def loaded(name: str, model: str) -> tuple[Any, Any]:
    """Return the engine of that name, which holds θ, and θ."""
    from estune import engines
    from estune.common.types import Unperturbed
    from estune.config import ESConfig
    from estune.theta.parameters import layout
    from estune.theta.theta import Theta

    base = checkpoint(model)
    plan = layout(base)
    theta = Theta.load(base, plan.in_model, share=True)
    with tempfile.TemporaryDirectory() as output:
        settings = VLLM if name == "vllm" else {}
        engine = engines.build(base, plan, ESConfig(output_dir=output, **settings))
    engine.check(theta, Unperturbed(0))  # finds the dtype of the weights
    return engine, theta


if __name__ == "__main__":
    main()
