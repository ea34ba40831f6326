"""Leave out rows that cannot be used, with a warning: one must not stop a file of thousands."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from estune.common.types import Row
from estune.errors import DataError

logger = logging.getLogger(__name__)


def usable(rows: Iterable[Any], make: Callable[[Any], Row], what: str) -> list[Row]:
    """Return `make` of each row, without the rows for which it raises DataError.

    A line in the log counts those and names the first; `what` names the data.

    Raises:
        DataError: more than half of the rows are refused, so the fault is probably elsewhere.
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
