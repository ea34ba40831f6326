"""What the seams around an engine cost: the same steps on one Ray worker as in this process, on the real model.

    python -m benchmarks.workers [--json]

    ray_over_local    wall time of a step on one Ray worker ÷ the same in the trainer's process (N = 8, 16 prompts, 32
                      new tokens); at most 1.03

Of four steps the first also compiles and the last saves, so the mean of the two between counts. Both runs are made twice
and in turn, since a machine's speed drifts, and the better of each is taken.
"""

import json
import statistics
import sys

from benchmarks.common import child, options, show, steps_between


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        workers, model, *given = sys.argv[2:]
        print(json.dumps(step_parts(workers, model, *map(int, given))))
        return
    asked = options(__doc__)
    size, times = (("2", "4", "8"), 1) if asked.quick else (("8", "16", "32"), 2)
    steps: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for _ in range(times):
        for workers, found in steps.items():
            found.append(child("benchmarks.workers", "--child", workers, asked.model, *size))
    best = {
        workers: min(found, key=lambda parts: parts["step"]) for workers, found in steps.items()
    }
    parts = {
        f"{workers}_{part}_seconds": seconds
        for workers, found in best.items()
        for part, seconds in found.items()
    }
    show({"ray_over_local": best["ray"]["step"] / best["local"]["step"]} | parts, asked.json)


def step_parts(
    workers: str, model: str, members: int, prompts: int, tokens: int
) -> dict[str, float]:
    """Seconds of a step of the trainer, and of the engine's parts in it."""
    from estune.tasks import get_task

    size = {"population_size": members, "max_steps": 4, "max_completion_length": tokens}
    steps = steps_between(model, get_task("conciseness").train(prompts), workers=workers, **size)
    names = {"step": "step_time"} | {
        part: f"es/{part}_seconds" for part in ("generate", "load", "update")
    }
    return {
        part: float(statistics.mean(step[name] for step in steps)) for part, name in names.items()
    }


if __name__ == "__main__":
    main()
