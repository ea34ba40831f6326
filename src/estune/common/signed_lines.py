"""Lines of JSON with a checksum, which reveals a flipped bit or a line that was cut off.

    {"step": 1, "reward": 0.5, "chain": "…", "checksum": "0123456789abcdef"}

The checksum is BLAKE2b (8 bytes) of the object's text without it. In a chain, `chain` precedes it:
BLAKE2b (16 bytes) of the previous line and of the object's text without these two fields. So a line
that was exchanged, repeated, removed or taken from another file is detected.
"""

import hashlib
import json
from typing import Any

CHAIN = "chain"
_CHECKSUM_MARK = ', "checksum": "'
_CHAIN_MARK = f', "{CHAIN}": "'


def signed(body: str) -> str:
    """Return the line for the JSON object `body`, a text with at least one field."""
    return f"{_extended(body, _CHECKSUM_MARK, _checksum(body))}\n"


def chained(body: str, before: bytes) -> str:
    """Return the line for `body` that follows the line `before`."""
    return signed(_extended(body, _CHAIN_MARK, _link(body, before)))


def verified(line: bytes) -> dict[str, Any] | None:
    """Return the line's object, or None if the checksum is wrong."""
    body, checksum = _split_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    if checksum != _checksum(body):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):  # a valid checksum of something else
        return None
    return record if isinstance(record, dict) else None


def follows(line: bytes, before: bytes) -> bool:
    """Return whether the chain links `line` to the line `before`."""
    body, _ = _split_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    body, link = _split_off(body, _CHAIN_MARK)
    return link == _link(body, before)


def _extended(body: str, mark: str, value: str) -> str:
    return f'{body[:-1]}{mark}{value}"}}'


def _split_off(text: str, mark: str) -> tuple[str, str]:
    """Return the object without its last field, and its value; "" if it is not `mark`'s."""
    body, found, value = text.rpartition(mark)
    if not found or not value.endswith('"}'):
        return text, ""
    return body + "}", value.removesuffix('"}')


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


def _link(body: str, before: bytes) -> str:
    return hashlib.blake2b(before + body.encode(), digest_size=16).hexdigest()
