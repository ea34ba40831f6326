"""How near the scheduler of Ray workers comes to what is ideal, and what it takes itself: two figures of benchmarks.simulate.

    python -m benchmarks.scheduler [--json]

    simulated_over_ideal    time of 30 members on 8 workers, without loading ÷ (sum of their times ÷ 8); at most 1.25, which is what
                            whole members take, each given to whoever is free
    scheduler_over_core     CPU time of the process that schedules 10,000 members on 1,000 workers ÷ the step's time

The first is in virtual time and the same on every machine; the second is not.
"""

from benchmarks.common import options, show
from benchmarks.simulate import Times, World, check, driver


def main() -> None:
    asked = options(__doc__)
    world, times = World(workers=1), Times(sigma=0.5, seed=0)
    ideal, process = (
        check(world, times, 1_200 if asked.quick else 60_000)[0],
        driver(world, times, 0)[0],
    )
    show(
        {
            "simulated_over_ideal": ideal["estune"],
            "scheduler_over_core": process["part_of_a_core"],
            "greedy_over_ideal": ideal["greedy"],
            "static_over_ideal": ideal["static"],
        },
        asked.json,
    )


if __name__ == "__main__":
    main()
