"""Keep results of benchmarks in a file, compare them with bars and a baseline, show a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from benchmarks.common import Figures
from benchmarks.registry import Benchmark, Ratio
from estune.common.durable import write_text
from estune.errors import ConfigError

STYLES = {"met": "green", "MISSED": "bold red", "FAILED": "bold red"}


@dataclass(frozen=True)
class Entry:
    """One benchmark's result; `failed` is the reason if it failed."""

    machine: str
    measured: str  # date and time
    seconds: float
    figures: Figures = field(default_factory=dict)
    failed: str = ""
    quick: bool = False

    def is_complete(self, benchmark: Benchmark) -> bool:
        """Whether it has all the ratios of the benchmark."""
        return not self.failed and all(ratio.name in self.figures for ratio in benchmark.ratios)


@dataclass(frozen=True)
class TableRow:
    """The text of one row of the table."""

    name: str
    description: str = ""
    value: str = ""
    bar: str = ""
    verdict: str = ""
    baseline: str = ""
    change: str = ""


class Results:
    """Entries by benchmark name, in a JSON file that each change replaces as a whole.

    Raises:
        ConfigError: the file contains something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            self.entries = {name: Entry(**entry) for name, entry in written.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not results of this command ({error}); delete it or name another file"
            ) from None

    def put(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = {name: dataclasses.asdict(entry) for name, entry in self.entries.items()}
        write_text(self.path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")

    def keep(self, benchmarks: Sequence[Benchmark], measured: Mapping[str, Entry]) -> None:
        """Store only the ratios of `measured`: other figures mean nothing on another machine."""
        for benchmark in benchmarks:
            entry = measured[benchmark.name]
            ratios = {ratio.name: entry.figures[ratio.name] for ratio in benchmark.ratios}
            self.put(benchmark.name, dataclasses.replace(entry, figures=ratios))


def rows(
    benchmarks: Sequence[Benchmark], measured: Mapping[str, Entry], baseline: Mapping[str, Entry]
) -> list[TableRow]:
    """Return a row per ratio, and one per benchmark that failed or was not measured."""
    found: list[TableRow] = []
    for benchmark in benchmarks:
        entry = measured.get(benchmark.name)
        if entry is None:
            found.append(TableRow(benchmark.name, "not measured"))
            continue
        ratios = benchmark.ratios
        if entry.failed:
            found.append(TableRow(benchmark.name, entry.failed, verdict="FAILED"))
            ratios = [ratio for ratio in ratios if ratio.name in entry.figures]
        before = baseline.get(benchmark.name)
        found.extend(_ratio_row(ratio, entry, before) for ratio in ratios)
    return found


def _ratio_row(ratio: Ratio, entry: Entry, before: Entry | None) -> TableRow:
    value = entry.figures.get(ratio.name)
    if value is None:
        missing = "the benchmark did not print this figure"
        return TableRow(ratio.name, missing, bar=ratio.bar, verdict="FAILED")
    if isinstance(value, str):
        return TableRow(ratio.name, value, bar=ratio.bar, verdict="not measured")
    row = TableRow(ratio.name, ratio.description, f"{value:.4g}", ratio.bar)
    if entry.quick:
        return row
    if ratio.bar:
        row = dataclasses.replace(row, verdict="met" if ratio.met(value) else "MISSED")
    old = before.figures.get(ratio.name) if before else None
    if not isinstance(old, int | float):
        return row
    change = f"{value / old - 1:+.1%}" + (" WORSE" if ratio.worse(value, old) else "")
    return dataclasses.replace(row, baseline=f"{old:.4g}", change=change)


def table(shown: Sequence[TableRow]) -> Table:
    drawn = Table(
        caption="WORSE: than the baseline by more than the margin in benchmarks/registry.py",
        caption_justify="left",
    )
    for head in ("ratio", "value", "bar", "", "baseline", "change"):
        drawn.add_column(head, no_wrap=True, justify="left" if head in ("ratio", "") else "right")
    drawn.add_column("what it is", overflow="fold")
    for row in shown:
        change = Text(row.change, "bold red" if "WORSE" in row.change else "")
        description = Text(row.description)
        drawn.add_row(
            row.name, row.value, row.bar, styled(row.verdict), row.baseline, change, description
        )
    return drawn


def styled(verdict: str) -> Text:
    return Text(verdict, STYLES.get(verdict, ""))


def summary(shown: Sequence[TableRow]) -> list[str]:
    """Return lines that name what failed, missed its bar or became worse."""
    kinds = {
        "failed": [row.name for row in shown if row.verdict == "FAILED"],
        "missed their bar": [row.name for row in shown if row.verdict == "MISSED"],
        "worse than the baseline": [row.name for row in shown if "WORSE" in row.change],
    }
    return named(kinds)


def named(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a line for each kind that has names: "2 failed: step, rl"."""
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
