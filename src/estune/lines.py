"""Lines of JSON that end with a checksum of the rest, by which a flipped bit or a torn end is noticed.

    {"step": 1, "reward": 0.5, "checksum": "0123456789abcdef"}

The checksum is BLAKE2b, 8 bytes, of the object's text without it.
"""

import hashlib
import json
from typing import Any

_MARK = ', "checksum": "'


def signed(body: str) -> str:
    """A line of the JSON object `body`, which has at least one field."""
    return f'{body[:-1]}{_MARK}{_checksum(body)}"}}\n'


def verified(line: bytes) -> dict[str, Any] | None:
    """What was signed, or None where that is not what the line holds."""
    body, mark, checksum = line.decode("utf-8", "replace").rstrip("\n").rpartition(_MARK)
    if not mark or checksum != _checksum(body + "}") + '"}':
        return None
    record = json.loads(body + "}")
    return record if isinstance(record, dict) else None


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
