"""One whole step of the real trainer on the real model against the generation in it, and the memory of a run.

    python -m benchmarks.step [--json]

    step_over_generation    wall time of a step (N = 16, 16 prompts, 64 new tokens) ÷ the sum of `generate` in it
    memory_over_bar         peak memory of the run ÷ (model + θ + 25 % + what generation alone takes); at most 1

Of four steps the first also compiles and reads a member back, and the last saves, so the worse of the two between is shown.
Memory is anonymous memory: pages of a mapped weights file can be dropped by the system at any time.
"""

from benchmarks.common import child, options, show


def main() -> None:
    asked = options(__doc__)
    run, alone = child("benchmarks.step_child", "run", asked.model), child("benchmarks.step_child", "alone", asked.model)
    weights = run["model_bytes"] + run["theta_bytes"]
    bar = 1.25 * weights + alone["peak_bytes"] - alone["model_bytes"]
    show(
        {
            "step_over_generation": run["step_over_generation"],
            "memory_over_bar": run["peak_bytes"] / bar,
            "peak_run_GB": run["peak_bytes"] / 1e9,
            "peak_generation_alone_GB": alone["peak_bytes"] / 1e9,
            "model_and_theta_GB": weights / 1e9,
            "generate_seconds": run["generate_seconds"],
            "load_seconds": run["load_seconds"],
            "update_seconds": run["update_seconds"],
        },
        asked.json,
    )


if __name__ == "__main__":
    main()
