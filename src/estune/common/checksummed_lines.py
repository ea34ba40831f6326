"""Lines of JSON that end in a checksum, which shows that a line was damaged or cut off.

    {"step": 1, "reward": 0.5, "chain": "…", "checksum": "0123456789abcdef"}

`checksum` is BLAKE2b (8 bytes) of the line's JSON without this field. Lines of a chain also have
`chain`: BLAKE2b (16 bytes) of the line before and of this line's JSON without both fields. It shows
that a line was swapped, repeated, removed or taken from another file.
"""

import hashlib
import json
from typing import Any

CHAIN = "chain"
_CHECKSUM_MARK = ', "checksum": "'
_CHAIN_MARK = f', "{CHAIN}": "'


def checksummed(body: str) -> str:
    """Return a line: `body`, the JSON text of an object with a field or more, and its checksum."""
    return f"{_extended(body, _CHECKSUM_MARK, _checksum(body))}\n"


def chained(body: str, before: bytes) -> str:
    """Return a line as `checksummed` does, with a `chain` field that links it to `before`."""
    return checksummed(_extended(body, _CHAIN_MARK, _link(body, before)))


def verified(line: bytes) -> dict[str, Any] | None:
    """Return the object on the line without its checksum, or None if the checksum is wrong."""
    body, checksum = _split_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    if checksum != _checksum(body):
        return None
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):  # a valid checksum of something else
        return None
    return record if isinstance(record, dict) else None


def follows(line: bytes, before: bytes) -> bool:
    """Return whether the `chain` field of `line` belongs to the line `before`."""
    body, _ = _split_off(line.decode("utf-8", "replace").rstrip("\n"), _CHECKSUM_MARK)
    body, link = _split_off(body, _CHAIN_MARK)
    return link == _link(body, before)


def _extended(body: str, mark: str, value: str) -> str:
    """Return the object `body` with one more field, of which `mark` is the text up to the value."""
    return f'{body[:-1]}{mark}{value}"}}'


def _split_off(text: str, mark: str) -> tuple[str, str]:
    """Return the object without the last field, and the field's value.

    If the last field does not begin with `mark`, return the text as it is, and "".
    """
    body, found, value = text.rpartition(mark)
    if not found or not value.endswith('"}'):
        return text, ""
    return body + "}", value.removesuffix('"}')


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()


def _link(body: str, before: bytes) -> str:
    return hashlib.blake2b(before + body.encode(), digest_size=16).hexdigest()
