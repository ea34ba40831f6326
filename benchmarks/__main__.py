"""Measure every ratio that this project promises, and show them in one table.

    python -m benchmarks                             all, in about half an hour on an idle machine
    python -m benchmarks --only kernels step         some
    python -m benchmarks --resume                    continue, or repeat what failed
    python -m benchmarks --quick                     small sizes, to see that everything runs
    python -m benchmarks --keep-baseline             write what was measured to the baseline
    python -m benchmarks --resume --keep-baseline    write what was measured before to it

Benchmarks run one after the other, each in its own process. Ratios are of times or amounts from one
run, because seconds differ between machines and between hours. Each result is written to a file at
once. A benchmark that runs alone prints more figures: python -m benchmarks.kernels, for example.

Exit status: 0, all was measured, even if a bar was missed; 1, a benchmark failed; 2, wrong options;
130 or 143, interrupted. Other work on the machine can cause a missed bar, so measure again before
you believe it.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def main() -> int:
    options = parse_options()
    # an exception also ends the process of the benchmark that is running
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    benchmarks = [one for one in BENCHMARKS if not options.only or one.name in options.only]
    try:
        session = Session(benchmarks, Results(options.json), Results(options.baseline), console)
    except ConfigError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    machine = common.machine()
    console.print(f"{machine}, {datetime.now():%Y-%m-%d}", soft_wrap=True)
    known = resumed(session.results, machine, options.quick) if options.resume else {}
    try:
        measured = session.measure(known, lambda one: measure(one, machine, options.quick))
    except KeyboardInterrupt:
        console.print(f"interrupted; results so far are in {options.json}, --resume continues")
        return 130
    return session.finish(measured, options.keep_baseline)


def resumed(results: Results, machine: str, quick: bool) -> dict[str, Entry]:
    """Return the results from this machine, with these versions and sizes."""
    return {
        name: entry
        for name, entry in results.entries.items()
        if (entry.machine, entry.quick) == (machine, quick)
    }


def measure(benchmark: Benchmark, machine: str, quick: bool) -> Entry:
    """Run a benchmark in its own process and return its figures, or why it failed."""
    flags = ["--json", *["--quick"] * quick]
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    started = perf_counter()
    figures: common.Figures = {}
    failed = ""
    try:
        figures = common.child(benchmark.module, *flags, session=True)
    except common.Failed as error:
        failed = str(error).removeprefix(f"{benchmark.module}: ")
    return Entry(machine, now, round(perf_counter() - started, 1), figures, failed, quick)


@dataclass(frozen=True)
class Session:
    """Benchmarks to measure, the files of their results and of the baseline, and where to print."""

    benchmarks: Sequence[Benchmark]
    results: Results
    baseline: Results
    console: Console

    def measure(
        self, known: dict[str, Entry], measure: Callable[[Benchmark], Entry]
    ) -> dict[str, Entry]:
        """Return an entry per benchmark, and write each to the results' file at once.

        Args:
            known: entries that need not be measured again, if they are complete.
            measure: measures one benchmark.
        """
        measured: dict[str, Entry] = {}
        with self._progress() as progress:
            task = progress.add_task("", total=len(self.benchmarks))
            for benchmark in self.benchmarks:
                progress.update(task, description=self._description(benchmark))
                entry = known.get(benchmark.name)
                if entry is None or not entry.is_complete(benchmark):
                    entry = measure(benchmark)
                    self.results.put(benchmark.name, entry)
                measured[benchmark.name] = entry
                outcome = f"{'failed' if entry.failed else 'measured'} {entry.measured}"
                self.console.print(f"{benchmark.name:10} {outcome}, {entry.seconds:.0f} s")
                progress.advance(task)
        return measured

    def finish(self, measured: dict[str, Entry], keep_baseline: bool) -> int:
        """Show the table, write the baseline if requested, and return the exit status."""
        shown = rows(self.benchmarks, measured, self.baseline.entries)
        self.console.print(table(shown))
        baselines = self.baseline.entries.values()
        compared = [f"baseline: {entry.machine}, {entry.measured[:10]}" for entry in baselines]
        for line in [*dict.fromkeys(compared), *summary(shown)]:
            self.console.print(line, soft_wrap=True)
        complete = all(measured[one.name].is_complete(one) for one in self.benchmarks)
        if keep_baseline and complete:
            self.baseline.keep(self.benchmarks, measured)
            self.console.print(f"baseline: wrote {self.baseline.path}")
        elif keep_baseline:
            self.console.print("baseline: not written, because not everything was measured")
        return 0 if complete else 1

    def _progress(self) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self.console, transient=True)

    def _description(self, benchmark: Benchmark) -> str:
        before = self.baseline.entries.get(benchmark.name)
        duration = f" ({before.seconds:.0f} s in the baseline)" if before else ""
        return f"{benchmark.name}: {benchmark.description}{duration}"


def parse_options() -> argparse.Namespace:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks:\n" + "\n".join(map(listed, BENCHMARKS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"{', '.join(names)} [all]")
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="results [runs/bench.json; with --quick runs/bench-quick.json]",
    )
    add(
        "--resume",
        action="store_true",
        help="measure only what that file lacks from this machine with these versions",
    )
    add(
        "--baseline",
        type=Path,
        metavar="FILE",
        default=BASELINE,
        help="results to compare with [benchmarks/baseline.json]",
    )
    add("--keep-baseline", action="store_true", help="write the measured ratios to that file")
    add("--quick", action="store_true", help="small sizes, to see that everything runs")
    options = parser.parse_args()
    if options.quick and options.keep_baseline:
        parser.error("--keep-baseline: figures of --quick mean nothing; leave one of the two out")
    needed = options.baseline != BASELINE and not options.keep_baseline
    if needed and not options.baseline.is_file():
        parser.error(f"--baseline: {options.baseline}: no such file; --keep-baseline writes one")
    name = "bench-quick.json" if options.quick else "bench.json"
    options.json = options.json or common.ROOT / "runs" / name
    return options


def listed(benchmark: Benchmark) -> str:
    ratios = ", ".join(ratio.name for ratio in benchmark.ratios)
    return f"  {benchmark.name:10} {benchmark.description}: {ratios}"


if __name__ == "__main__":
    sys.exit(main())
