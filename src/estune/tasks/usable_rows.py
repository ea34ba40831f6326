"""Rows that cannot be used: one of them does not refuse a file of thousands, but is always named."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from estune.common.types import Row
from estune.errors import DataError

logger = logging.getLogger(__name__)


def usable(rows: Iterable[Any], make: Callable[[Any], Row], what: str) -> list[Row]:
    """Return what `make` makes of each row, without the rows that it refuses.

    A line in the log counts those and names the first.

    Raises:
        DataError: it refuses more than half of the rows, so the fault is probably elsewhere.
    """
    made: list[Row] = []
    refused: list[str] = []
    for index, row in enumerate(rows):
        try:
            made.append(make(row))
        except DataError as error:
            refused.append(f"row {index}: {error}")
    total = len(made) + len(refused)
    if len(refused) > len(made):
        counted = f" ({len(refused)} of {total:,} rows cannot be used)" if total > 1 else ""
        raise DataError(f"{what}: {refused[0]}{counted}")
    if refused:
        counted = f"{len(refused):,} of {total:,} rows left out"
        logger.warning("%s: %s; the first is %s", what, counted, refused[0])
    return made
