"""What was measured: kept in a file as it grows, held against the bars and a baseline, and shown as one table."""

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
    """One benchmark's result; `failed` is the reason when there is none."""

    machine: str
    measured: str  # when
    seconds: float
    figures: Figures = field(default_factory=dict)
    failed: str = ""
    quick: bool = False

    def answers(self, benchmark: Benchmark) -> bool:
        """Whether it has what the benchmark promises to print."""
        return not self.failed and all(ratio.name in self.figures for ratio in benchmark.ratios)


@dataclass(frozen=True)
class Row:
    """A line of the table, in words."""

    name: str
    says: str = ""
    value: str = ""
    bar: str = ""
    verdict: str = ""
    baseline: str = ""
    change: str = ""


class Results:
    """Entries by benchmark's name in a JSON file, which is replaced whole at every change.

    Raises:
        ConfigError: the file is there, and holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            self.entries = {name: Entry(**entry) for name, entry in written.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not results of this command ({error}); delete it, or name another file"
            ) from None

    def put(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = {name: dataclasses.asdict(entry) for name, entry in self.entries.items()}
        write_text(self.path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")

    def keep(self, benchmarks: Sequence[Benchmark], measured: Mapping[str, Entry]) -> None:
        """Take over the ratios of what was measured, and no other figures: a baseline is for other machines too."""
        for benchmark in benchmarks:
            entry = measured[benchmark.name]
            ratios = {ratio.name: entry.figures[ratio.name] for ratio in benchmark.ratios}
            self.put(benchmark.name, dataclasses.replace(entry, figures=ratios))


def rows(
    benchmarks: Sequence[Benchmark], measured: Mapping[str, Entry], baseline: Mapping[str, Entry]
) -> list[Row]:
    """All that there is to say of the benchmarks, one line a ratio."""
    found: list[Row] = []
    for benchmark in benchmarks:
        entry, before = measured.get(benchmark.name), baseline.get(benchmark.name)
        if entry is None or entry.failed:
            found.append(
                Row(
                    benchmark.name,
                    entry.failed if entry else "not measured",
                    verdict="FAILED" if entry else "",
                )
            )
            found.extend(
                _row(ratio, entry, before)
                for ratio in benchmark.ratios
                if entry and ratio.name in entry.figures
            )
        else:
            found.extend(_row(ratio, entry, before) for ratio in benchmark.ratios)
    return found


def _row(ratio: Ratio, entry: Entry, before: Entry | None) -> Row:
    value = entry.figures.get(ratio.name)
    if value is None:
        return Row(
            ratio.name, "the benchmark printed no such figure", bar=ratio.bar, verdict="FAILED"
        )
    if isinstance(value, str):
        return Row(ratio.name, value, bar=ratio.bar, verdict="not measured")
    verdict = "" if entry.quick or not ratio.bar else "met" if ratio.met(value) else "MISSED"
    old = before.figures.get(ratio.name) if before else None
    if entry.quick or not isinstance(old, (int, float)):
        return Row(ratio.name, ratio.says, f"{value:.4g}", ratio.bar, verdict)
    change = f"{value / old - 1:+.1%}" + (" WORSE" if ratio.worse(value, old) else "")
    return Row(ratio.name, ratio.says, f"{value:.4g}", ratio.bar, verdict, f"{old:.4g}", change)


def table(shown: Sequence[Row]) -> Table:
    drawn = Table(
        caption="WORSE: than the baseline, by more than the ratio's margin in benchmarks/registry.py",
        caption_justify="left",
    )
    for head in ("ratio", "value", "bar", "", "baseline", "change"):
        drawn.add_column(head, no_wrap=True, justify="left" if head in ("ratio", "") else "right")
    drawn.add_column("what it is", overflow="fold")
    for row in shown:
        verdict = Text(row.verdict, STYLES.get(row.verdict, ""))
        change = Text(row.change, "bold red" if "WORSE" in row.change else "")
        drawn.add_row(row.name, row.value, row.bar, verdict, row.baseline, change, Text(row.says))
    return drawn


def summary(shown: Sequence[Row]) -> list[str]:
    """Lines that name what a reader must not overlook."""
    kinds = {
        "failed": [row.name for row in shown if row.verdict == "FAILED"],
        "missed their bar": [row.name for row in shown if row.verdict == "MISSED"],
        "worse than the baseline": [row.name for row in shown if "WORSE" in row.change],
    }
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
