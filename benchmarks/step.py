"""One whole step of the real trainer on the real model against the generation in it, and the memory of a run.

    python -m benchmarks.step [--json]

    step_over_generation    wall time of a step (50 prompts, 64 new tokens) ÷ the sum of `generate` in it; at most 1.01
    memory_over_bar         peak memory of the run ÷ (model + θ + 25 % + what generation alone takes); at most 1

N is 4, for a step of 30 takes minutes: loading, generating and the update all go with N, so that the ratio of 30 is no higher.
Of four steps the worse of the two between the first, which also compiles, and the last, which saves, is shown.
Memory is what cannot be given back: pages of a mapped weights file can be dropped by the system at any time.
"""

from benchmarks.common import child, options, parameters, show


def main() -> None:
    asked = options(__doc__)
    size = ("2", "4", "8") if asked.quick else ("4", "50", "64")
    run, alone = (
        child("benchmarks.step_child", what, asked.model, *size) for what in ("run", "alone")
    )
    model, theta = (itemsize * parameters(asked.model) for itemsize in (run["itemsize"], 4))
    bar = 1.25 * (model + theta) + alone["peak_bytes"] - model
    show(
        {
            "step_over_generation": run["step_time"] / run["es/generate_seconds"],
            "memory_over_bar": run["peak_bytes"] / bar,
            "peak_run_GB": run["peak_bytes"] / 1e9,
            "peak_generation_alone_GB": alone["peak_bytes"] / 1e9,
            "model_and_theta_GB": (model + theta) / 1e9,
        }
        | {
            name: run[f"es/{name}"]
            for name in ("generate_seconds", "load_seconds", "update_seconds")
        },
        asked.json,
    )


if __name__ == "__main__":
    main()
