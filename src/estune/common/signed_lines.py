"""Lines of JSON that end with a checksum of the rest, by which a flipped bit or a torn end is noticed.

    {"step": 1, "reward": 0.5, "chain": "…", "checksum": "0123456789abcdef"}

The checksum is BLAKE2b, 8 bytes, of the object's text without it. Lines of a chain have one more field before it: BLAKE2b, 16
bytes, of the line before followed by the object's text without these two. So a line that is exchanged, repeated or removed, or
that comes from another file, does not follow from the one before it.
"""

import hashlib
import json
from typing import Any

CHAIN = "chain"
_CHECKSUM_MARK = ', "checksum": "'
_CHAIN_MARK = f', "{CHAIN}": "'


def signed(body: str) -> str:
    """A line of the JSON object `body`, which has at least one field."""
    return f"{_extended(body, _CHECKSUM_MARK, _checksum(body))}\n"


def chained(body: str, before: bytes) -> str:
    """The line of `body` that follows the line `before`."""
    return signed(_extended(body, _CHAIN_MARK, _link(body, before)))


def verified(line: bytes) -> dict[str, Any] | None:
    """What was signed, or None where that is not what the line holds."""
    body, checksum = _taken_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    if checksum != _checksum(body):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):  # somebody signed what is no JSON
        return None
    return record if isinstance(record, dict) else None


def follows(line: bytes, before: bytes) -> bool:
    """Whether `line` was written after the line `before`."""
    body, _ = _taken_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    body, link = _taken_off(body, _CHAIN_MARK)
    return link == _link(body, before)


def _extended(body: str, mark: str, value: str) -> str:
    return f'{body[:-1]}{mark}{value}"}}'


def _taken_off(text: str, mark: str) -> tuple[str, str]:
    """The object without its last field, and that field's value, empty where its name is not that of `mark`."""
    body, found, value = text.rpartition(mark)
    return (body + "}", value.removesuffix('"}')) if found and value.endswith('"}') else (text, "")


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


def _link(body: str, before: bytes) -> str:
    return hashlib.blake2b(before + body.encode(), digest_size=16).hexdigest()
