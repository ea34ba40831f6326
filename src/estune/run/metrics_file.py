"""metrics.jsonl: one line per step with TRL's names, and a checksum as its last field.

The journal also has the training metrics, so a damaged line is restored from there. Only this file
has the evaluation metrics. If the last step's are lost, the step is evaluated again; if an earlier
evaluation is lost that decides the best checkpoint, that is an error. Earlier versions wrote no
checksums; their lines are accepted.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from estune.common.checksummed_lines import checksummed, verified
from estune.common.durable import write_text
from estune.config import ESConfig
from estune.errors import JournalError
from estune.theta.journal import Journal

logger = logging.getLogger(__name__)
Record = dict[str, Any]  # `step`, and numbers or None


class MetricsFile:
    """The metrics of a run, in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Record]:
        """Return the records of all undamaged lines."""
        return [record for line in self._lines() if (record := _record(line)) is not None]

    def append(self, record: Record) -> None:
        """Add a line; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def has_foreign_lines(self) -> bool:
        """Whether the file holds lines that estune did not write."""
        return any(verified(line) is None for line in self._lines())

    def clear(self) -> None:
        """Start an empty file."""
        write_text(self.path, "")

    def repair(self, journal: Journal, config: ESConfig, evaluated: Callable[[int], bool]) -> None:
        """Keep one line per step up to the journal's last, and restore lost ones from the journal.

        A missing line of the last step is not restored: that step is evaluated again.

        Raises:
            JournalError: a damaged line held an evaluation that decides the best checkpoint.
        """
        kept = {record["step"]: record for record in self.read() if record["step"] <= journal.last}
        lost = [step for step in range(journal.last) if step not in kept]
        damaged = [
            number
            for number, line in enumerate(self._lines(), 1)
            if line.endswith(b"\n") and _record(line) is None
        ]
        if damaged:
            self._report(damaged[0], [step for step in lost if evaluated(step)], config)
        for step in lost:
            if step:
                kept[step] = {"step": step, **journal.steps[step - 1].notes["metrics"]}
                kept[step]["step"] = step  # a reward function may log a metric of this name
        write_text(self.path, "".join(_line(kept[step]) for step in sorted(kept)))

    def _report(self, number: int, evaluations: list[int], config: ESConfig) -> None:
        """Report a damaged line; `evaluations` are the steps whose evaluations are lost."""
        what = f"{self.path}: line {number} is damaged"
        if evaluations and config.metric_for_best_model:
            raise JournalError(
                f"{what}, and metric_for_best_model needs the evaluation of step {evaluations[0]} "
                "in it; restore the file from a copy, or delete the line to continue without that "
                "evaluation"
            )
        exception = ", except those of an evaluation, which are lost" if evaluations else ""
        logger.warning("%s; its figures are taken from the journal%s", what, exception)

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []


def _line(record: Record) -> str:
    return checksummed(json.dumps(record, allow_nan=False))


def _record(line: bytes) -> Record | None:
    record = verified(line) or _without_checksum(line)
    if record is None or type(record.get("step")) is not int:
        return None
    numbers = all(value is None or isinstance(value, (int, float)) for value in record.values())
    return record if numbers else None


def _without_checksum(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
