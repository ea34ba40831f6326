"""Every ratio that this project promises, in one table: measured one benchmark after the other, each in a process of its own.

    python -m benchmarks                             all, in about half an hour on a machine with nothing else to do
    python -m benchmarks --only kernels step         some
    python -m benchmarks --resume                    go on after an interruption, or try again what failed
    python -m benchmarks --quick                     whether all of it runs, at sizes whose figures mean nothing
    python -m benchmarks --keep-baseline             take what was measured as the baseline, to be committed
    python -m benchmarks --resume --keep-baseline    the same for what was measured before

Ratios are of times or amounts taken within one run: seconds drift from machine to machine, and from hour to hour. A result is
written as soon as there is one. A benchmark on its own prints more figures: python -m benchmarks.kernels, for example.

Exit status: 0, all was measured, and bars that were missed are named; 1, a benchmark failed; 130 or 143, interrupted. A missed bar is no
failure, as other work on the machine can be its cause: look at the table, measure again, and only then believe it.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks import common
from benchmarks.registry import BENCHMARKS, Benchmark
from benchmarks.results import Entry, Results, rows, summary, table
from estune.errors import ConfigError

BASELINE = Path(__file__).with_name("baseline.json")

Measure = Callable[[Benchmark], Entry]


def main() -> int:
    asked = _options()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # an exception, which ends what is being measured too
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    benchmarks = [one for one in BENCHMARKS if not asked.only or one.name in asked.only]
    try:
        results, baseline, machine = Results(asked.json), Results(asked.baseline), common.machine()
    except ConfigError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    console.print(f"{machine}, {datetime.now():%Y-%m-%d}", soft_wrap=True)
    known = resumed(results, machine, asked.quick) if asked.resume else {}
    try:
        measured = measure_all(
            benchmarks,
            results,
            known,
            lambda one: measure(one, machine, asked.quick),
            console,
            baseline,
        )
    except KeyboardInterrupt:
        console.print(f"interrupted; what was measured is in {asked.json}, and --resume goes on")
        return 130
    return finish(benchmarks, measured, baseline, asked.keep_baseline, console)


def resumed(results: Results, machine: str, quick: bool) -> dict[str, Entry]:
    """What needs not be measured again: it was, on this machine, with these versions and sizes."""
    return {
        name: entry
        for name, entry in results.entries.items()
        if (entry.machine, entry.quick) == (machine, quick)
    }


def measure(benchmark: Benchmark, machine: str, quick: bool) -> Entry:
    """Run the benchmark; its failure is a result too."""
    started, now = perf_counter(), f"{datetime.now():%Y-%m-%d %H:%M}"
    try:
        figures, failed = (
            common.child(benchmark.module, "--json", *["--quick"] * quick, session=True),
            "",
        )
    except common.Failed as error:
        figures, failed = {}, str(error).removeprefix(f"{benchmark.module}: ")
    return Entry(machine, now, round(perf_counter() - started, 1), figures, failed, quick)


def measure_all(
    benchmarks: Sequence[Benchmark],
    results: Results,
    known: dict[str, Entry],
    measure: Measure,
    console: Console,
    baseline: Results,
) -> dict[str, Entry]:
    """An entry a benchmark, each in the results' file before the next begins."""
    measured: dict[str, Entry] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(benchmarks))
        for benchmark in benchmarks:
            before = baseline.entries.get(benchmark.name)
            progress.update(
                task,
                description=f"{benchmark.name}: {benchmark.says}"
                + (f" ({before.seconds:.0f} s once)" if before else ""),
            )
            entry = known.get(benchmark.name)
            if entry is None or not entry.answers(benchmark):
                entry = measure(benchmark)
                results.put(benchmark.name, entry)
            measured[benchmark.name] = entry
            console.print(
                f"{benchmark.name:10} {'failed' if entry.failed else 'measured'} {entry.measured}, {entry.seconds:.0f} s"
            )
            progress.advance(task)
    return measured


def finish(
    benchmarks: Sequence[Benchmark],
    measured: dict[str, Entry],
    baseline: Results,
    keep: bool,
    console: Console,
) -> int:
    """Show the table, keep the baseline if that was asked for, and return the exit status."""
    shown = rows(benchmarks, measured, baseline.entries)
    console.print(table(shown))
    for one in dict.fromkeys(
        f"baseline: {entry.machine}, {entry.measured[:10]}" for entry in baseline.entries.values()
    ):
        console.print(one, soft_wrap=True)
    for line in summary(shown):
        console.print(line, soft_wrap=True)
    whole = all(measured[benchmark.name].answers(benchmark) for benchmark in benchmarks)
    if keep and whole:
        baseline.keep(benchmarks, measured)
    if keep:
        console.print(
            f"baseline: {baseline.path} written"
            if whole
            else "baseline: not written, as not all was measured"
        )
    return 0 if whole else 1


def _options() -> argparse.Namespace:
    names = [benchmark.name for benchmark in BENCHMARKS]
    listed = "\n".join(
        f"  {one.name:10} {one.says}: {', '.join(ratio.name for ratio in one.ratios)}"
        for one in BENCHMARKS
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)} [all]")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="where results are kept [runs/bench.json; with --quick runs/bench-quick.json]",
    )
    add(
        "--resume",
        action="store_true",
        help="measure only what is not in that file yet, from this machine with these versions",
    )
    add(
        "--baseline",
        type=Path,
        metavar="FILE",
        default=BASELINE,
        help="what to compare with [benchmarks/baseline.json]",
    )
    add(
        "--keep-baseline",
        action="store_true",
        help="write the ratios that were measured to that file",
    )
    add("--quick", action="store_true", help="small sizes: whether all of it runs")
    asked = parser.parse_args()
    if asked.quick and asked.keep_baseline:
        parser.error("--keep-baseline: what --quick measures means nothing; leave one of them out")
    if asked.baseline != BASELINE and not (asked.keep_baseline or asked.baseline.is_file()):
        parser.error(
            f"--baseline: there is no {asked.baseline}; name a file that --keep-baseline wrote"
        )
    asked.json = asked.json or common.ROOT / "runs" / (
        "bench-quick.json" if asked.quick else "bench.json"
    )
    return asked


if __name__ == "__main__":
    sys.exit(main())
