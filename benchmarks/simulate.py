"""How far more workers go: the real scheduler over imagined workers, in virtual time, beside two simpler ones.

    python -m benchmarks.simulate                          everything, about six minutes
    python -m benchmarks.simulate --only check             against known figures: 30 members on 8 workers
    python -m benchmarks.simulate --only table --draw docs/scaling.svg
    python -m benchmarks.simulate --only failures --slow-part 0.1 --slower 8
    python -m benchmarks.simulate --only driver            CPU time and memory of the process that schedules
    python -m benchmarks.simulate --times seconds.json     a JSON list of seconds that members really took
    python -m benchmarks.scheduler                         what `make bench` shows of it

Times are in members: 1 is what a member takes to generate on average. Efficiency is the time that generating takes on one
worker ÷ (workers × the time that they took), over several steps in a row; 1 is ideal.

    static    member i goes to worker i mod W at the step's start, and the step ends when the slowest worker is done
    greedy    whole members, each to whoever is free
    estune    the last members of a step are cut up (src/estune/workers/dispatch.py). Behind it stands the part of a member's
              time that each piece of it takes whatever its size: on GPUs a small batch takes nearly as long as a large one

All of a member's prompts take equally long. Scoring, updating θ and messages take no time. --draw needs matplotlib.
"""

import argparse
import heapq
import itertools
import json
import pickle
import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.common import pyplot, save_picture
from estune.common.types import Completion
from estune.workers.dispatch import Dispatch, Pace, Piece

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
MEMBERS = (30, 300, 3_000, 10_000)
FIXED = (0.0, 0.25, 0.5)
PROMPTS, TOKENS = 200, 500
MEMBER_SECONDS = 30.0  # that a member is taken to take, where seconds matter
TICK = 0.5 / MEMBER_SECONDS  # between looks at who is late, as in workers/ray.py


class Schedule(Protocol):
    """What `Dispatch` offers to whoever runs workers."""

    @property
    def finished(self) -> bool: ...
    def take(self, worker: int, workers: int, now: float) -> Piece | None: ...
    def done(self, piece: Piece, now: float) -> bool: ...
    def lost(self, worker: int) -> None: ...


class Greedy:
    """Whole members, each to whoever is free."""

    def __init__(self, members: int, prompts: int) -> None:
        self._left = deque(Piece(member, 0, prompts) for member in range(members))
        self._open = members
        self._at: dict[int, Piece] = {}

    @property
    def finished(self) -> bool:
        return self._open == 0

    def take(self, worker: int, workers: int, now: float) -> Piece | None:
        queue = self._queue(worker)
        if not queue:
            return None
        self._at[worker] = queue.popleft()
        return self._at[worker]

    def done(self, piece: Piece, now: float) -> bool:
        self._open -= 1
        return True

    def lost(self, worker: int) -> None:
        self._queue(worker).appendleft(self._at.pop(worker))

    def _queue(self, worker: int) -> deque[Piece]:
        return self._left


class Static(Greedy):
    """Member i for worker i mod W; what a lost worker was at waits until it is back."""

    def __init__(self, members: int, prompts: int, workers: int) -> None:
        super().__init__(members, prompts)
        whole = list(self._left)
        self._queues = [deque(whole[worker::workers]) for worker in range(workers)]

    def _queue(self, worker: int) -> deque[Piece]:
        return self._queues[worker]


@dataclass(frozen=True)
class World:
    """What the imagined workers are like; times are in members."""

    workers: int
    load: float = 0.01
    fixed: float = 0.0
    fails: float = 0.0  # times a worker is lost while it works one member's time
    back: float = 2.0  # until a lost one is back
    slow_part: float = 0.0
    slower: float = 4.0


@dataclass
class Cluster:
    """Imagined workers and their clock. A worker that is still at something when a step ends goes on with it."""

    world: World
    random: np.random.Generator
    now: float = 0.0
    loads: int = 0
    turns: int = 0
    _events: list[tuple[float, int, bool, int, Schedule | None, Piece | None]] = field(
        default_factory=list
    )
    _idle: list[int] = field(default_factory=list)
    _away: int = 0
    _count: Iterator[int] = field(
        default_factory=itertools.count
    )  # so that what happens at once happens in order
    _holds: dict[int, int] = field(default_factory=dict)  # worker → the member that it has loaded
    _slowness: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world
        self._idle = list(range(world.workers))
        slow = self.random.permutation(world.workers) < round(world.slow_part * world.workers)
        self._slowness = np.where(slow, world.slower, 1.0).tolist()

    def step(self, schedule: Schedule, seconds: list[float]) -> Iterator[Piece]:
        """Let the workers do all of one population; yields each piece that counts, when it is done."""
        self._holds.clear()
        self._hand_out(schedule, seconds)
        while not schedule.finished:
            self.turns += 1
            if self._idle and self._events[0][0] > self.now + TICK:
                self.now += TICK
            else:
                self.now, _, ended, worker, asked_by, piece = heapq.heappop(self._events)
                if ended and piece and asked_by is schedule and schedule.done(piece, self.now):
                    yield piece
                self._moved(worker, ended, piece, schedule if asked_by is schedule else None)
            self._hand_out(schedule, seconds)

    def _moved(
        self, worker: int, ended: bool, piece: Piece | None, schedule: Schedule | None
    ) -> None:
        """`worker` is idle, because its piece ended or because it came back; or it is lost."""
        if piece and not ended:
            self._away += 1
            self._holds.pop(worker, None)
            self._at(self.now + self.world.back, False, worker, None, None)
            if schedule:
                schedule.lost(worker)
            return
        self._away -= piece is None
        self._idle.append(worker)

    def _hand_out(self, schedule: Schedule, seconds: list[float]) -> None:
        alive, still = self.world.workers - self._away, []
        for worker in self._idle:
            piece = schedule.take(worker, alive, self.now)
            if piece is None:
                still.append(worker)
            else:
                self._start(worker, schedule, piece, seconds[piece.member])
        self._idle = still

    def _start(self, worker: int, schedule: Schedule, piece: Piece, seconds: float) -> None:
        world = self.world
        takes = seconds * (world.fixed + (1 - world.fixed) * piece.size / PROMPTS)
        if self._holds.get(worker) != piece.member:
            self._holds[worker] = piece.member
            self.loads += 1
            takes += world.load
        takes *= self._slowness[worker]
        lives = self.random.exponential(1 / world.fails) if world.fails else takes
        self._at(self.now + min(takes, lives), lives >= takes, worker, schedule, piece)

    def _at(
        self, when: float, ended: bool, worker: int, schedule: Schedule | None, piece: Piece | None
    ) -> None:
        heapq.heappush(self._events, (when, next(self._count), ended, worker, schedule, piece))


Policy = Callable[[int], Schedule]  # N → how one population of N is dealt out
Rows = list[dict[str, Any]]


def policy(name: str, workers: int) -> Policy:
    if name == "static":
        return lambda members: Static(members, PROMPTS, workers)
    pace = Pace()
    return lambda members: (
        Greedy(members, PROMPTS) if name == "greedy" else Dispatch(members, PROMPTS, pace)
    )


@dataclass(frozen=True)
class Times:
    """How long members take, 1 on average: lognormal, or drawn from what was measured."""

    sigma: float
    seed: int
    measured: list[float] | None = None

    def draw(self, steps: int, members: int) -> list[list[float]]:
        random = np.random.default_rng([self.seed, members])
        if self.measured:
            drawn = random.choice(self.measured, (steps, members)) / np.mean(self.measured)
        else:
            drawn = random.lognormal(-(self.sigma**2) / 2, self.sigma, (steps, members))
        listed: list[list[float]] = drawn.tolist()
        return listed


def efficiency(
    name: str, world: World, times: Times, steps: int, members: int
) -> tuple[float, float]:
    """Of `steps` steps in a row, and the loads a member."""
    cluster = Cluster(world, np.random.default_rng([times.seed, 1]))
    schedule, drawn = policy(name, world.workers), times.draw(steps, members)
    for seconds in drawn:
        deque(cluster.step(schedule(members), seconds), maxlen=0)
    return sum(map(sum, drawn)) / (world.workers * cluster.now), cluster.loads / (steps * members)


def enough(members: int, workers: int, budget: int) -> int:
    """Steps: many of small ones, a few of large ones."""
    return max(3, min(1000, budget // (members + 4 * workers)))


def check(world: World, times: Times, budget: int) -> Rows:
    """Times over ideal, of 30 members on 8 workers without loading: greedy 1.25 and static 1.47 were known before."""
    row: dict[str, Any] = {}
    for name in ("static", "greedy", "estune"):
        value, loads = efficiency(
            name, replace(world, workers=8, load=0.0), times, budget // 12, 30
        )
        row[name] = 1 / value
    return [row | {"loads": loads}]


def table(world: World, times: Times, budget: int) -> Rows:
    """Efficiency by N and workers; estune also where a part of a member's time is fixed."""
    rows: Rows = []
    for members in MEMBERS:
        for workers in WORKERS:
            here, steps = replace(world, workers=workers), enough(members, workers, budget)
            row: dict[str, Any] = {"N": members, "workers": workers}
            for name in ("static", "greedy"):
                row[name] = efficiency(name, here, times, steps, members)[0]
            for fixed in FIXED:
                row[f"estune {fixed:g}"], loads = efficiency(
                    "estune", replace(here, fixed=fixed), times, steps, members
                )
                row["loads"] = row.get("loads", loads)  # where nothing is fixed
            rows.append(row)
            progress(f"N = {members}, {workers} workers")
    return rows


def failures(world: World, times: Times, budget: int) -> Rows:
    """Efficiency where workers are lost, or some are slow; all `workers` count, as if they were always there and fast."""
    kinds: dict[str, list[str]] = {
        "none": ["fails", "slow_part"],
        "lost": ["slow_part"],
        "slow": ["fails"],
        "both": [],
    }  # what is not
    rows: Rows = []
    for members, workers in ((30, 8), (300, 32), (3_000, 256), (10_000, 1000)):
        for kind, without in kinds.items():
            here = replace(replace(world, workers=workers), **dict.fromkeys(without, 0))
            row: dict[str, Any] = {"N": members, "workers": workers, "trouble": kind}
            for name in ("static", "greedy", "estune"):
                row[name] = efficiency(
                    name, here, times, enough(members, workers, budget), members
                )[0]
            rows.append(row)
            progress(f"N = {members}, {workers} workers, trouble: {kind}")
    return rows


def driver(world: World, times: Times, budget: int) -> Rows:
    """One step of 10,000 members on 1,000 workers, where every free worker asks at every turn, as in workers/ray.py."""
    here, members = replace(world, workers=1000), 10_000
    seconds = times.draw(1, members)[0]
    cluster = Cluster(here, np.random.default_rng(times.seed))
    started = time.process_time()
    deque(cluster.step(Dispatch(members, PROMPTS), seconds), maxlen=0)
    cpu = time.process_time() - started
    before, (held, weight), lasts = (
        peak_bytes(),
        hold(here, seconds, times.seed),
        cluster.now * MEMBER_SECONDS,
    )
    return [
        {
            "cpu_seconds": cpu,
            "step_seconds": lasts,
            "part_of_a_core": cpu / lasts,
            "turns": cluster.turns,
            "peak_GB_before": before / 1e9,
            "peak_GB_with_completions": peak_bytes() / 1e9,
            "members_held_at_most": held,
            "MB_of_a_member": weight / 1e6,
            "GB_if_all_were_kept": weight * members / 1e9,
        }
    ]


def hold(world: World, seconds: list[float], seed: int) -> tuple[int, float]:
    """Keep completions until all of their member's are there, as workers/ray.py does; how many members at most, bytes of one."""
    travels = pickle.dumps(Completion("x" * 4 * TOKENS, list(range(1000, 1000 + TOKENS)), False))
    answers, most = defaultdict[int, list[Completion]](list), 0
    for piece in Cluster(world, np.random.default_rng(seed)).step(
        Dispatch(len(seconds), PROMPTS), seconds
    ):
        answers[piece.member].extend(pickle.loads(travels) for _ in range(piece.size))
        most = max(most, len(answers))
        if len(answers[piece.member]) == PROMPTS:
            del answers[piece.member]  # it was scored
    return most, PROMPTS * weigh(pickle.loads(travels))


def weigh(completion: Completion) -> int:
    return sum(map(sys.getsizeof, [completion, completion.text, completion.ids, *completion.ids]))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:40}", end="", file=sys.stderr, flush=True)


PARTS = {
    "driver": driver,
    "check": check,
    "table": table,
    "failures": failures,
}  # the driver first, for its peak of memory


def show(title: str | None, rows: Rows) -> None:
    print("\n" + (title or "").split("\n")[0])
    if len(rows) == 1:
        for name, value in rows[0].items():
            print(f"{name:28} {value:.4g}")
        return
    print(" ".join(f"{name:>11}" for name in rows[0]))
    for row in rows:
        print(
            " ".join(
                f"{value:11.3f}" if isinstance(value, float) else f"{value:>11}"
                for value in row.values()
            )
        )


def draw(rows: Rows, path: Path) -> None:
    lines = {
        "static": "tab:gray",
        "greedy": "tab:olive",
        "estune 0": "#08519c",
        "estune 0.25": "#4292c6",
        "estune 0.5": "#9ecae1",
    }
    figure, axes = pyplot().subplots(
        1, len(MEMBERS), figsize=(13, 3.4), sharey=True, layout="constrained"
    )
    for members, axis in zip(MEMBERS, axes, strict=True):
        here = [row for row in rows if row["N"] == members]
        for name, color in lines.items():
            axis.plot(
                [row["workers"] for row in here],
                [row[name] for row in here],
                color=color,
                label=name,
                marker=".",
            )
        axis.set(xscale="log", title=f"N = {members:,}", xlabel="workers", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("efficiency")
    axes[0].legend(frameon=False)
    save_picture(figure, path)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=PARTS, help="one of the parts [all]")
    add("--sigma", type=float, default=0.5, help="of the lognormal time of members [0.5]")
    add(
        "--times",
        type=Path,
        help="draw members' times from this JSON list instead; only their ratios count",
    )
    add("--load", type=float, default=0.01, help="time to load a member [0.01]; check has none")
    add(
        "--fixed",
        type=float,
        default=0.0,
        help="part of a member's time that is fixed, in all but the table, which has 0, 0.25 and 0.5 [0]",
    )
    add(
        "--fails",
        type=float,
        default=0.02,
        help="how often a worker is lost while it works one member's time, in failures [0.02]",
    )
    add("--back", type=float, default=2.0, help="time until a lost one is back [2]")
    add(
        "--slow-part",
        type=float,
        default=0.1,
        help="part of the workers that are slow, in failures [0.1]",
    )
    add("--slower", type=float, default=4.0, help="how many times slower they are [4]")
    add(
        "--budget",
        type=int,
        default=60_000,
        help="about how many members a figure comes from [60000]",
    )
    add("--seed", type=int, default=0, help="of all that is drawn [0]")
    add("--draw", type=Path, help="draw the table's picture into this .svg or .png")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args()


def main() -> None:
    asked = options()
    if asked.draw:
        pyplot()  # or end now
    measured = json.loads(asked.times.read_text()) if asked.times else None
    times = Times(asked.sigma, asked.seed, measured)
    base = World(1, asked.load, asked.fixed, back=asked.back, slower=asked.slower)
    trouble = replace(base, fails=asked.fails, slow_part=asked.slow_part)
    results: dict[str, Rows] = {}
    for name, part in PARTS.items():
        if asked.only in (None, name):
            results[name] = part(trouble if name == "failures" else base, times, asked.budget)
            if not asked.json:
                show(part.__doc__, results[name])
    if asked.json:
        print(json.dumps(results))
    if asked.draw:
        draw(results.get("table") or table(base, times, asked.budget), asked.draw)


if __name__ == "__main__":
    main()
