"""Measure the scheduler of Ray workers: how close to ideal it is, and what it costs.

    python -m benchmarks.scheduler [--json]

    simulated_over_ideal  time of 30 members on 8 workers, without loading ÷ their sum / 8;
                          at most 1.25, the time when each free worker gets a whole member
    scheduler_over_core   CPU time of scheduling 10,000 members on 1,000 workers ÷ the step's time

Both come from benchmarks.simulate. The first is in virtual time and the same on every machine.
"""

from benchmarks.cluster import Times, World
from benchmarks.common import options, show
from benchmarks.simulate import check, driver


def main() -> None:
    given = options(__doc__)
    world = World(workers=1)
    times = Times(sigma=0.5, seed=0)
    (over_ideal,) = check(world, times, 1_200 if given.quick else 60_000)
    (process,) = driver(world, times, 0)
    figures = {
        "simulated_over_ideal": over_ideal["estune"],
        "scheduler_over_core": process["part_of_a_core"],
        "greedy_over_ideal": over_ideal["greedy"],
        "static_over_ideal": over_ideal["static"],
    }
    show(figures, given.json)


if __name__ == "__main__":
    main()
