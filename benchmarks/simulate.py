"""Simulate how efficiency falls as workers are added, with the scheduler that Ray workers use.

    python -m benchmarks.simulate                          everything, in about six minutes
    python -m benchmarks.simulate --only check             30 members on 8 workers: known figures
    python -m benchmarks.simulate --only table --draw docs/scaling.svg
    python -m benchmarks.simulate --only failures --slow-part 0.1 --slower 8
    python -m benchmarks.simulate --only driver            CPU time and memory of the scheduler
    python -m benchmarks.simulate --times seconds.json     members' times from a JSON list
    python -m benchmarks.scheduler                         the figures in `make bench`

Times are in members: 1 is the average time to generate one member. Efficiency is (time on one
worker, generating only) ÷ (workers × time on all of them), over several steps; 1 is ideal.

    static    member i goes to worker i mod W; a step ends when the slowest worker is done
    greedy    each free worker gets a whole member
    estune    as greedy, but the last members of a step are cut up (src/estune/workers/dispatch.py).
              The number after the name is the part of a member's time that each of its pieces
              takes, whatever its size: on GPUs a small batch takes nearly as long as a large one.

All of a member's prompts take equally long. Scoring, updating θ and messages take no time.
--draw needs matplotlib.
"""

import argparse
import json
import pickle
import resource
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cluster import MEMBER_SECONDS, PROMPTS, Cluster, Times, World, scheduler
from benchmarks.common import pyplot, save_picture
from estune.common.types import Completion
from estune.workers.dispatch import Dispatch

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
MEMBERS = (30, 300, 3_000, 10_000)
SCHEDULERS = ("static", "greedy", "estune")
FIXED = (0.0, 0.25, 0.5)
TOKENS = 500  # of a completion, where memory is measured
COLORS = {
    "static": "tab:gray",
    "greedy": "tab:olive",
    "estune 0": "#08519c",
    "estune 0.25": "#4292c6",
    "estune 0.5": "#9ecae1",
}

Rows = list[dict[str, Any]]


def efficiency(
    name: str, world: World, times: Times, steps: int, members: int
) -> tuple[float, float]:
    """Return the efficiency over `steps` steps, and loads per member."""
    cluster = Cluster(world, np.random.default_rng([times.seed, 1]))
    schedule = scheduler(name, world.workers)
    drawn = times.draw(steps, members)
    for seconds in drawn:
        run_step(cluster, schedule(members), seconds)
    total = sum(map(sum, drawn))
    return total / (world.workers * cluster.now), cluster.loads / (steps * members)


def run_step(cluster: Cluster, schedule: Any, seconds: list[float]) -> None:
    deque(cluster.step(schedule, seconds), maxlen=0)


def enough_steps(members: int, workers: int, budget: int) -> int:
    """Return how many steps to simulate: many small ones, or a few large ones."""
    return max(3, min(1000, budget // (members + 4 * workers)))


def check(world: World, times: Times, budget: int) -> Rows:
    """Time ÷ ideal, 30 members on 8 workers without loading; known: greedy 1.25, static 1.47."""
    world = replace(world, workers=8, load=0.0)
    found = {name: efficiency(name, world, times, budget // 12, 30) for name in SCHEDULERS}
    row = {name: 1 / value for name, (value, _) in found.items()}
    return [row | {"loads": found["estune"][1]}]


def table(world: World, times: Times, budget: int) -> Rows:
    """Efficiency by N and workers; `estune F`: a part F of a member's time is fixed."""
    rows: Rows = []
    for members in MEMBERS:
        for workers in WORKERS:
            rows.append(table_row(replace(world, workers=workers), times, budget, members))
            progress(f"N = {members}, {workers} workers")
    return rows


def table_row(world: World, times: Times, budget: int, members: int) -> dict[str, Any]:
    steps = enough_steps(members, world.workers, budget)
    row: dict[str, Any] = {"N": members, "workers": world.workers}
    for name in ("static", "greedy"):
        row[name], _ = efficiency(name, world, times, steps, members)
    for fixed in FIXED:
        value, loads = efficiency("estune", replace(world, fixed=fixed), times, steps, members)
        row[f"estune {fixed:g}"] = value
        row.setdefault("loads", loads)  # those without a fixed part
    return row


def failures(world: World, times: Times, budget: int) -> Rows:
    """Efficiency with lost or slow workers, which count as if always present and fast."""
    troubles = {
        "none": replace(world, fails=0, slow_part=0),
        "lost": replace(world, slow_part=0),
        "slow": replace(world, fails=0),
        "both": world,
    }
    rows: Rows = []
    for members, workers in ((30, 8), (300, 32), (3_000, 256), (10_000, 1000)):
        steps = enough_steps(members, workers, budget)
        for trouble, troubled in troubles.items():
            here = replace(troubled, workers=workers)
            found = {name: efficiency(name, here, times, steps, members)[0] for name in SCHEDULERS}
            rows.append({"N": members, "workers": workers, "trouble": trouble} | found)
            progress(f"N = {members}, {workers} workers, trouble: {trouble}")
    return rows


def driver(world: World, times: Times, budget: int) -> Rows:
    """CPU time and memory of scheduling one step of 10,000 members on 1,000 workers."""
    world = replace(world, workers=1000)
    seconds = times.draw(1, 10_000)[0]
    cluster = Cluster(world, np.random.default_rng(times.seed))
    started = time.process_time()
    run_step(cluster, Dispatch(len(seconds), PROMPTS), seconds)
    cpu = time.process_time() - started
    step = cluster.now * MEMBER_SECONDS
    figures = {
        "cpu_seconds": cpu,
        "step_seconds": step,
        "part_of_a_core": cpu / step,
        "turns": cluster.turns,
    }
    return [figures | completions_memory(world, seconds, times.seed)]


def completions_memory(world: World, seconds: list[float], seed: int) -> dict[str, float]:
    """Measure memory if completions are kept until their member is done, as in workers/ray.py."""
    before = peak_bytes()
    sent = pickle.dumps(Completion("x" * 4 * TOKENS, list(range(1000, 1000 + TOKENS)), False))
    kept = defaultdict[int, list[Completion]](list)
    most = 0
    cluster = Cluster(world, np.random.default_rng(seed))
    for piece in cluster.step(Dispatch(len(seconds), PROMPTS), seconds):
        kept[piece.member].extend(pickle.loads(sent) for _ in range(piece.size))
        most = max(most, len(kept))
        if len(kept[piece.member]) == PROMPTS:
            del kept[piece.member]
    member_bytes = PROMPTS * bytes_of(pickle.loads(sent))
    return {
        "peak_GB_before": before / 1e9,
        "peak_GB_with_completions": peak_bytes() / 1e9,
        "members_held_at_most": most,
        "MB_of_a_member": member_bytes / 1e6,
        "GB_if_all_were_kept": member_bytes * len(seconds) / 1e9,
    }


def bytes_of(completion: Completion) -> int:
    parts = [completion, completion.text, completion.ids, *completion.ids]
    return sum(map(sys.getsizeof, parts))


def peak_bytes() -> int:
    """Return this process's peak of resident memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:40}", end="", file=sys.stderr, flush=True)


# the driver comes first, because it measures a peak of memory
PARTS: dict[str, Callable[[World, Times, int], Rows]] = {
    "driver": driver,
    "check": check,
    "table": table,
    "failures": failures,
}


def show(title: str | None, rows: Rows) -> None:
    print(f"\n{title}")
    if len(rows) == 1:
        for name, value in rows[0].items():
            print(f"{name:28} {value:.4g}")
        return
    print(" ".join(f"{name:>11}" for name in rows[0]))
    for row in rows:
        print(" ".join(cell(value) for value in row.values()))


def cell(value: Any) -> str:
    return f"{value:11.3f}" if isinstance(value, float) else f"{value:>11}"


def draw(rows: Rows, path: Path) -> None:
    """Draw efficiency by workers, one panel per N."""
    panels = len(MEMBERS)
    figure, axes = pyplot().subplots(
        1, panels, figsize=(13, 3.4), sharey=True, layout="constrained"
    )
    for members, axis in zip(MEMBERS, axes, strict=True):
        shown = [row for row in rows if row["N"] == members]
        workers = [row["workers"] for row in shown]
        for name, color in COLORS.items():
            values = [row[name] for row in shown]
            axis.plot(workers, values, color=color, label=name, marker=".")
        axis.set(xscale="log", title=f"N = {members:,}", xlabel="workers", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("efficiency")
    axes[0].legend(frameon=False)
    save_picture(figure, path)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def number(flag: str, default: float, text: str) -> None:
        parser.add_argument(flag, type=type(default), default=default, help=f"{text} [{default:g}]")

    parser.add_argument("--only", choices=PARTS, help="one of the parts [all]")
    number("--sigma", 0.5, "σ of members' lognormal time")
    parser.add_argument(
        "--times",
        type=Path,
        help="draw members' times from this JSON list instead; only their ratios matter",
    )
    number("--load", 0.01, "time to load a member; in check it is 0")
    number("--fixed", 0.0, "fixed part of a member's time, in all parts but the table")
    number("--fails", 0.02, "failures: losses of a worker per member's time of work")
    number("--back", 2.0, "failures: time until a lost worker is back")
    number("--slow-part", 0.1, "failures: part of the workers that are slow")
    number("--slower", 4.0, "failures: how many times as long slow workers take")
    number("--budget", 60_000, "about how many members to simulate for each figure")
    number("--seed", 0, "seed of all random numbers")
    parser.add_argument("--draw", type=Path, help="draw the table into this .svg or .png")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    return parser.parse_args()


def main() -> None:
    given = options()
    if given.draw:
        pyplot()  # without matplotlib, exit before anything is simulated
    measured = json.loads(given.times.read_text()) if given.times else None
    times = Times(given.sigma, given.seed, measured)
    world = World(1, given.load, given.fixed, back=given.back, slower=given.slower)
    troubled = replace(world, fails=given.fails, slow_part=given.slow_part)
    results: dict[str, Rows] = {}
    for name in [given.only] if given.only else PARTS:
        part = PARTS[name]
        results[name] = part(troubled if name == "failures" else world, times, given.budget)
        if not given.json:
            show(part.__doc__, results[name])
    if given.json:
        print(json.dumps(results))
    if given.draw:
        draw(results.get("table") or table(world, times, given.budget), given.draw)


if __name__ == "__main__":
    main()
