"""Compare a training step with the generation in it, and the memory of a run with a bar.

    python -m benchmarks.step [--json]

    step_over_generation    time of a step (50 prompts, 64 new tokens) ÷ the time of its `generate`
                            calls; at most 1.01
    memory_over_bar         peak memory of a run ÷ (1.25 × (model + θ) + what generating takes);
                            at most 1

The real trainer runs SmolLM2. N is 4, because a step of 30 takes minutes. Loading, generating and
the update all grow with N, so the ratio is no higher at 30. Of four steps the first also compiles
and the last saves; the worse of the two between counts. Memory is anonymous and shared memory: the
system can drop pages of a mapped weights file at any time.
"""

import tempfile

from benchmarks.common import (
    Figures,
    Peak,
    checkpoint,
    child,
    options,
    parameters,
    ran_as_child,
    show,
    steps_between,
)

MODULE = "benchmarks.step"
SECONDS = ("generate_seconds", "load_seconds", "update_seconds")


def main() -> None:
    if ran_as_child({"run": run, "generate": generate}):
        return
    given = options(__doc__)
    size = ("2", "4", "8") if given.quick else ("4", "50", "64")
    step = child(MODULE, "--child", "run", given.model, *size)
    generation = child(MODULE, "--child", "generate", given.model, *size)
    count = parameters(given.model)
    model_bytes = step["itemsize"] * count
    model_and_theta = model_bytes + 4 * count
    bar = 1.25 * model_and_theta + generation["peak_bytes"] - model_bytes
    figures = {
        "step_over_generation": step["step_time"] / step["es/generate_seconds"],
        "memory_over_bar": step["peak_bytes"] / bar,
        "peak_run_GB": step["peak_bytes"] / 1e9,
        "peak_generation_alone_GB": generation["peak_bytes"] / 1e9,
        "model_and_theta_GB": model_and_theta / 1e9,
    }
    show(figures | {name: step[f"es/{name}"] for name in SECONDS}, given.json)


def run(model: str, members: str, prompts: str, tokens: str) -> Figures:
    """Train for four steps; return the metrics of the worse step, and the peak of memory."""
    from estune.config import ESConfig
    from estune.engines.device import engine_dtype
    from estune.tasks import get_task

    peak = Peak()
    steps = steps_between(
        model,
        get_task("conciseness").train(int(prompts)),
        population_size=int(members),
        max_steps=4,
        max_completion_length=int(tokens),
    )
    worse = max(steps, key=lambda step: step["step_time"] / step["es/generate_seconds"])
    return worse | {"itemsize": engine_dtype(ESConfig()).itemsize, "peak_bytes": peak.bytes}


def generate(model: str, members: str, prompts: str, tokens: str) -> Figures:
    """Return the peak of memory of the same generation without θ."""
    from estune import engines
    from estune.config import ESConfig
    from estune.tasks import get_task
    from estune.theta.parameters import layout

    peak = Peak()
    base = checkpoint(model)
    rows = get_task("conciseness").train(int(prompts))
    with tempfile.TemporaryDirectory() as output:
        engine = engines.build(base, layout(base), ESConfig(output_dir=output))
        engine.generate([row["prompt"] for row in rows], max_completion_length=int(tokens))
    return {"peak_bytes": peak.bytes}


if __name__ == "__main__":
    main()
