"""Keep the results of `benchmarks/gpu_all.sh` as each part ends, and show which promises hold.

python -m benchmarks.gpu_all.results put FOLDER PART STATUS SECONDS [--cpu]
python -m benchmarks.gpu_all.results done FOLDER PART [--cpu]   # status 0: need not run again
python -m benchmarks.gpu_all.results show FOLDER

A part's figures are read from FOLDER/PART.out, and the reason of a failure from FOLDER/PART.log.
"""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.common import last_line, machine
from benchmarks.gpu_all.promises import PARTS
from benchmarks.registry import Benchmark
from benchmarks.results import Entry, Results, TableRow, named, rows, styled
from estune.common.durable import write_text
from estune.errors import ConfigError

STOPPED, KILLED = 124, 137  # exit statuses of timeout
WIDTH = 130  # columns where there is no terminal


def main() -> int:
    what, folder, *rest = sys.argv[1:]
    on_cpu = rest[-1:] == ["--cpu"]
    try:
        results = Results(Path(folder) / "results.json")
    except ConfigError as error:
        print(f"gpu_all: {error}", file=sys.stderr)
        return 2
    if what == "put":
        results.put(rest[0], entry(Path(folder), rest[0], int(rest[1]), float(rest[2]), on_cpu))
        return 0
    if what == "done":
        return 0 if is_done(results, rest[0], on_cpu) else 1
    return show(results)


def entry(folder: Path, part: str, status: int, seconds: float, on_cpu: bool) -> Entry:
    """Return what a part printed, and why it failed if it did."""
    figures = read(folder / f"{part}.out")
    failed = why_failed(folder / f"{part}.log", status, seconds) if status else ""
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    return Entry(where(), now, seconds, figures, failed, quick=on_cpu)


def read(path: Path) -> dict[str, float | str]:
    """Merge the JSON objects in a file's lines; skip other lines and one that was cut off."""
    figures: dict[str, float | str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        figures |= found if isinstance(found, dict) else {}
    return figures


def why_failed(log: Path, status: int, seconds: float) -> str:
    """Return why a part failed, in one line."""
    after = f"after {seconds:.0f} s"
    if status == STOPPED:
        return f"stopped {after}, its limit"
    if status == KILLED:
        return f"killed {after}, because it did not stop at its limit or memory ran out"
    message = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return f"{message or 'no message'} (status {status}; see {log})"


def is_done(results: Results, part: str, on_cpu: bool) -> bool:
    """Whether this machine has measured the part, at these sizes."""
    known = results.entries.get(part)
    if known is None or known.failed:
        return False
    return (known.machine, known.quick) == (where(), on_cpu)


def where() -> str:
    return f"{card()}; {machine()}"


def card() -> str:
    """Return the GPU's name, memory and driver, without importing torch."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "no GPU"
    names = found.stdout.strip().splitlines()
    return names[0] if found.returncode == 0 and names else "no GPU"


def show(results: Results) -> int:
    """Print the table and write it to table.txt; return 1 if a part failed or is missing."""
    shown = [row for part in PARTS for row in part_rows(part, results)]
    last_lines = summary(results, shown)
    path = results.path.with_name("table.txt")
    with io.StringIO() as text:
        file = Console(file=text, width=WIDTH, highlight=False, markup=False)
        width = None if sys.stdout.isatty() else WIDTH
        for console in (Console(width=width, highlight=False, markup=False), file):
            console.print(table(shown))
            for line in last_lines:
                console.print(line, soft_wrap=True)
        write_text(path, text.getvalue())
    entries = [results.entries.get(part.name) for part in PARTS]
    return 0 if all(entry and not entry.failed for entry in entries) else 1


def part_rows(part: Benchmark, results: Results) -> list[TableRow]:
    return [TableRow(f"{part.name}:", part.description), *rows([part], results.entries, {})]


def table(shown: Sequence[TableRow]) -> Table:
    drawn = Table()
    drawn.add_column("figure", no_wrap=True)
    drawn.add_column("value", no_wrap=True, justify="right")
    drawn.add_column("promised", no_wrap=True, justify="right")
    drawn.add_column("", no_wrap=True)
    drawn.add_column("what it is", overflow="fold")
    for row in shown:
        drawn.add_row(row.name, row.value, row.bar, styled(row.verdict), Text(row.description))
    return drawn


def summary(results: Results, shown: Sequence[TableRow]) -> list[str]:
    """Return lines with the machine and date, and which promises hold."""
    entries = results.entries.values()
    machines = dict.fromkeys(f"{entry.machine}, {entry.measured[:10]}" for entry in entries)
    if any(entry.quick for entry in entries):
        note = "small sizes on a CPU: this shows that the parts run, and nothing about a GPU"
        return [*machines, note]
    kinds = {
        "hold": [row.name for row in shown if row.verdict == "met"],
        "do not hold": [row.name for row in shown if row.verdict == "MISSED"],
        "failed": [row.name for row in shown if row.verdict == "FAILED"],
        "not measured, in parts that did not run": [
            part.name for part in PARTS if part.name not in results.entries
        ],
    }
    return [*machines, *named(kinds)]


if __name__ == "__main__":
    sys.exit(main())
