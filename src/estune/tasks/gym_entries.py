"""Entries of reasoning-gym's datasets as JSON, with tuples and with keys that are not text."""

import json
from collections.abc import Mapping
from typing import Any

from estune.errors import DataError

_TUPLE = "__tuple__"
_PAIRS = "__pairs__"


def encode(entry: Mapping[str, Any]) -> str:
    """Return an entry as JSON, from which `decode` restores it."""
    # `default` is for a Fraction of gsm_symbolic, which its verifier does not read.
    return json.dumps(_plain(entry), default=str)


def decode(text: str, row: int = 0) -> dict[str, Any]:
    """Return the entry that `encode` wrote.

    Raises:
        DataError: it is not an entry; the message names the row.
    """
    try:
        entry = _restored(json.loads(text))
        whole = {"question", "answer"} <= set(entry) and isinstance(entry["metadata"], dict)
    except (TypeError, ValueError, KeyError, RecursionError):
        whole = False
    if not whole or not isinstance(entry, dict):
        raise DataError(
            f"row {row}: the entry is no entry of reasoning_gym; use the task's own rows"
        )
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {str(key): _plain(each) for key, each in value.items()}
        return {_PAIRS: [[_plain(key), _plain(each)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(each) for each in value]}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value  # a numpy scalar


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_restored(each) for each in value[_TUPLE])
    if _PAIRS in value:
        return {_restored(key): _restored(each) for key, each in value[_PAIRS]}
    return {key: _restored(each) for key, each in value.items()}
