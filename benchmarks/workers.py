"""Compare training steps on one Ray worker with the same steps in the trainer's process.

    python -m benchmarks.workers [--json]

    ray_over_local    time of a step on one Ray worker ÷ in the trainer's process (SmolLM2, N = 8,
                      16 prompts, 32 new tokens); at most 1.03

Of four steps the first also compiles and the last saves, so the mean of the two between counts.
Each run is made twice, in alternation because a machine's speed drifts, and the faster one counts.
"""

import statistics

from benchmarks.common import Figures, child, options, ran_as_child, show, steps_between

SECONDS = {
    "step": "step_time",
    "generate": "es/generate_seconds",
    "load": "es/load_seconds",
    "update": "es/update_seconds",
}


def main() -> None:
    if ran_as_child({"run": run}):
        return
    given = options(__doc__)
    size = ("2", "4", "8") if given.quick else ("8", "16", "32")
    runs: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for _ in range(1 if given.quick else 2):
        for workers, found in runs.items():
            seconds = child("benchmarks.workers", "--child", "run", workers, given.model, *size)
            found.append(seconds)
    local, ray = (min(found, key=lambda seconds: seconds["step"]) for found in runs.values())
    figures: dict[str, float | str] = {"ray_over_local": ray["step"] / local["step"]}
    for workers, best in (("local", local), ("ray", ray)):
        figures |= {f"{workers}_{part}_seconds": seconds for part, seconds in best.items()}
    show(figures, given.json)


def run(workers: str, model: str, members: str, prompts: str, tokens: str) -> Figures:
    """Train for four steps; return the mean seconds of a step, and of its parts."""
    from estune.tasks import get_task

    steps = steps_between(
        model,
        get_task("conciseness").train(int(prompts)),
        workers=workers,
        population_size=int(members),
        max_steps=4,
        max_completion_length=int(tokens),
    )
    return {
        part: float(statistics.mean(step[metric] for step in steps))
        for part, metric in SECONDS.items()
    }


if __name__ == "__main__":
    main()
