"""metrics.jsonl: one line a step with what was measured, under TRL's names, and a checksum as the last field.

What training measured stands in the journal too, so a damaged line is written again from there. What an evaluation measured
does not: the last step is evaluated again, and an earlier evaluation that decides the best checkpoint must not be lost in silence.
Lines without a checksum, of versions before there were any, are taken as they are.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estune.common.durable import write_text
from estune.common.signed_lines import signed, verified
from estune.config import ESConfig
from estune.errors import JournalError
from estune.theta.journal import Journal

logger = logging.getLogger(__name__)
Record = dict[str, Any]  # `step`, and numbers or None


class MetricsFile:
    """The file of metrics at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """The records of the lines that are whole."""
        return [record for line in self._lines() if (record := _record(line)) is not None]

    def append(self, record: Record) -> None:
        """Add a line, on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def has_foreign_lines(self) -> bool:
        """Whether the file holds lines that estune did not write."""
        return any(verified(line) is None for line in self._lines())

    def clear(self) -> None:
        """Begin an empty file."""
        write_text(self.path, "")

    def repair(self, journal: Journal, config: ESConfig, evaluated: Callable[[int], bool]) -> None:
        """Let the file have each step before the journal's last, and no later one; the last's line, if it is missing, is made anew.

        Raises:
            JournalError: a damaged line held an evaluation that decides the best checkpoint.
        """
        kept = {record["step"]: record for record in self.read() if record["step"] <= journal.last}
        lost = [step for step in range(journal.last) if step not in kept]
        if damaged := [
            number
            for number, line in enumerate(self._lines(), 1)
            if line.endswith(b"\n") and _record(line) is None
        ]:
            self._report(damaged[0], [step for step in lost if evaluated(step)], config)
        kept |= {
            step: {"step": step} | journal.steps[step - 1].notes["metrics"] | {"step": step}
            for step in lost
            if step
        }
        write_text(self.path, "".join(_line(kept[step]) for step in sorted(kept)))

    def _report(self, number: int, evaluations: list[int], config: ESConfig) -> None:
        what = f"{self.path}: line {number} is damaged"
        if evaluations and config.metric_for_best_model:
            raise JournalError(
                f"{what}, and the evaluation of step {evaluations[0]}, by which metric_for_best_model chooses, is lost with it; "
                "restore the file from a copy, or delete the line to go on without that evaluation"
            )
        logger.warning(
            "%s; its figures are had from the journal%s",
            what,
            ", without those of an evaluation" if evaluations else "",
        )

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []


def _line(record: Record) -> str:
    return signed(json.dumps(record, allow_nan=False))


def _record(line: bytes) -> Record | None:
    record = verified(line) or _unsigned(line)
    return (
        record
        if record is not None and type(record.get("step")) is int and _is_figures(record)
        else None
    )


def _unsigned(line: bytes) -> Record | None:
    """The record of a line that never had a checksum: one that had has text."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_figures(record) else None


def _is_figures(record: Record) -> bool:
    return all(value is None or isinstance(value, (int, float)) for value in record.values())
