"""Keep the results of `benchmarks/gpu_all.sh` as each part ends, and show which promises hold.

python -m benchmarks.gpu_all.results put FOLDER PART STATUS SECONDS [--cpu]
python -m benchmarks.gpu_all.results done FOLDER PART [--cpu]   # status 0: the part need not run again
python -m benchmarks.gpu_all.results show FOLDER

A part's figures are read from FOLDER/PART.out, and the reason of a failure from FOLDER/PART.log.
"""

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
from benchmarks.results import STYLES, Entry, Results, Row, rows
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
    """What a part printed, and why it failed if it did."""
    figures = read(folder / f"{part}.out")
    failed = reason(folder / f"{part}.log", status, seconds) if status else ""
    return Entry(
        where(), f"{datetime.now():%Y-%m-%d %H:%M}", seconds, figures, failed, quick=on_cpu
    )


def read(path: Path) -> dict[str, float | str]:
    """Merge the JSON objects in a file's lines; skip other lines and a last line that was cut off."""
    figures: dict[str, float | str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        figures |= found if isinstance(found, dict) else {}
    return figures


def reason(log: Path, status: int, seconds: float) -> str:
    """Why a part failed, in one line."""
    if status == STOPPED:
        return f"stopped after {seconds:.0f} s, its limit"
    if status == KILLED:
        return (
            f"killed after {seconds:.0f} s, because it did not stop at its limit or memory ran out"
        )
    said = last_line(log.read_text(encoding="utf-8", errors="replace"))
    return f"{said or 'it said nothing'} (status {status}; see {log})"


def is_done(results: Results, part: str, on_cpu: bool) -> bool:
    known = results.entries.get(part)
    return (
        known is not None
        and not known.failed
        and known.quick == on_cpu
        and known.machine == where()
    )


def where() -> str:
    return f"{card()}; {machine()}"


def card() -> str:
    """The GPU's name, memory and driver, without torch."""
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
    path = results.path.with_name("table.txt")
    with path.with_name("table.tmp").open("w", encoding="utf-8") as file:
        screen = Console(
            width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False
        )
        for console in (screen, Console(file=file, width=WIDTH, highlight=False, markup=False)):
            console.print(table(shown))
            for line in summary(results, shown):
                console.print(line, soft_wrap=True)
    path.with_name("table.tmp").replace(path)
    entries = [results.entries.get(part.name) for part in PARTS]
    return 0 if all(entry and not entry.failed for entry in entries) else 1


def part_rows(part: Benchmark, results: Results) -> list[Row]:
    return [Row(f"{part.name}:", part.says), *rows([part], results.entries, {})]


def table(shown: Sequence[Row]) -> Table:
    drawn = Table()
    for head in ("figure", "value", "promised", ""):
        drawn.add_column(
            head, no_wrap=True, justify="right" if head in ("value", "promised") else "left"
        )
    drawn.add_column("what it is", overflow="fold")
    for row in shown:
        drawn.add_row(
            row.name,
            row.value,
            row.bar,
            Text(row.verdict, STYLES.get(row.verdict, "")),
            Text(row.says),
        )
    return drawn


def summary(results: Results, shown: Sequence[Row]) -> list[str]:
    """The machine and date, and which promises hold."""
    places = dict.fromkeys(
        f"{entry.machine}, {entry.measured[:10]}" for entry in results.entries.values()
    )
    if any(entry.quick for entry in results.entries.values()):
        return [
            *places,
            "small sizes on a CPU: this shows that the parts run, and nothing about a GPU",
        ]
    kinds = {"met": "hold", "MISSED": "do not hold", "FAILED": "failed"}
    named = {
        kind: [row.name for row in shown if row.verdict == verdict]
        for verdict, kind in kinds.items()
    }
    left = [part.name for part in PARTS if part.name not in results.entries]
    named["not measured, in parts that did not run"] = left
    return [
        *places,
        *(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in named.items() if names),
    ]


if __name__ == "__main__":
    sys.exit(main())
