"""Compare the dispatcher's fitted cost per piece with simpler rules, on simulated workers.

    python -m benchmarks.pace [--budget 20000]

Each figure is the time of a step ÷ its time with the fit. `fixed` is the part of a member's time
that each of its pieces costs; `both` loses workers and makes one in ten slow.

    no fit   members are cut as if pieces cost nothing extra
    quarter  members are cut as if a quarter of their time were fixed
    greedy   whole members, and late ones given to another worker as well
"""

import argparse

import numpy as np

from benchmarks.cluster import PROMPTS, Cluster, Times, World
from benchmarks.simulate import enough_steps, run_step
from estune.workers.dispatch import Dispatch, Pace

SIZES = ((30, 2), (30, 4), (30, 8), (300, 32), (3_000, 256))


class NoFit(Pace):
    """The mean time per prompt, and a given fixed part."""

    part = 0.0

    def fit(self) -> tuple[float, float]:
        return 0.0, self._y / self._count if self._count else 0.0

    def fixed(self, prompts: int) -> float:
        return self.part


class Quarter(NoFit):
    part = 0.25


class Whole(Dispatch):
    """Hands out whole members, and late ones twice."""

    def _largest_piece(self, left: int, workers: int) -> int:
        return self.prompts


KINDS: dict[str, tuple[type[Dispatch], type[Pace]]] = {
    "fit": (Dispatch, Pace),
    "no fit": (Dispatch, NoFit),
    "quarter": (Dispatch, Quarter),
    "greedy": (Whole, NoFit),
}


def seconds(name: str, world: World, members: int, steps: int) -> float:
    """Return the time of `steps` steps."""
    dispatch, pace_of = KINDS[name]
    pace = pace_of()
    cluster = Cluster(world, np.random.default_rng([0, 1]))
    for times in Times(sigma=0.5, seed=0).draw(steps, members):
        run_step(cluster, dispatch(members, PROMPTS, pace), times)
    return cluster.now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=int, default=20_000, help="members per figure [20000]")
    budget = parser.parse_args().budget
    print(f"{'N':>6} {'workers':>8} {'fixed':>6} {'trouble':>8}", *(f"{k:>8}" for k in KINDS))
    for members, workers in SIZES:
        steps = enough_steps(members, workers, budget)
        for trouble in (False, True):
            for fixed in (0.0, 0.25, 0.5):
                world = World(workers, 0.01, fixed, fails=0.02 * trouble, slow_part=0.1 * trouble)
                found = [seconds(name, world, members, steps) for name in KINDS]
                ratios = " ".join(f"{one / found[0]:8.3f}" for one in found)
                name = "both" if trouble else "none"
                print(f"{members:6} {workers:8} {fixed:6} {name:>8} {ratios}", flush=True)


if __name__ == "__main__":
    main()
