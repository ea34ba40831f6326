"""Rows that cannot be used: one odd row does not refuse a file of thousands, but it never goes without a word."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from estune.errors import DataError

logger = logging.getLogger(__name__)


def usable(rows: Iterable[Any], make: Callable[[Any], dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """What `make` makes of each row, without the rows that it refuses, which a line in the log counts and the first of which it names.

    Raises:
        DataError: it refuses more than half of the rows, so that the fault is likely to be elsewhere.
    """
    made: list[dict[str, Any]] = []
    refused: list[str] = []
    for index, row in enumerate(rows):
        try:
            made.append(make(row))
        except DataError as error:
            refused.append(f"row {index}: {error}")
    total = len(made) + len(refused)
    if len(refused) > len(made):
        raise DataError(f"{what}: {refused[0]}" + (f" ({len(refused)} of {total:,} rows cannot be used)" if total > 1 else ""))
    if refused:
        logger.warning("%s: %d of %s rows left out; the first is %s", what, len(refused), f"{total:,}", refused[0])
    return made
