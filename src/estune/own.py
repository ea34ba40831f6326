"""Text files that a person may have written, too, such as README.md: estune replaces only what it wrote itself.

The last line of such a file is a comment with a checksum of the rest, so that a file that somebody edited is left alone, too.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from estune.durable import write_text

logger = logging.getLogger(__name__)


def write_own(path: Path, text: str, comment: str) -> None:
    """Write `text` to `path`, or if that is not estune's, to a name beside it; `comment` makes a comment of a line, as `# {}`."""
    target = next(name for name in _names(path) if not name.exists() or is_own(name))
    if target != path:
        logger.warning("%s was not written by estune and stays as it is; what would be there is in %s", path, target.name)
    write_text(target, text + comment.format(f"written by estune, checksum {_checksum(text)}") + "\n")


def own(path: Path) -> Path | None:
    """The file that `write_own` wrote for `path` last, if it is there."""
    return next((name for name in itertools.takewhile(Path.exists, _names(path)) if is_own(name)), None)


def is_own(path: Path) -> bool:
    """Whether estune wrote the file, and nobody has changed it since."""
    try:
        text, _, last = path.read_text(encoding="utf-8").rstrip().rpartition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return f"written by estune, checksum {_checksum(text)}" in last


def _names(path: Path) -> Iterator[Path]:
    yield path
    yield path.with_name(f"estune-{path.name}")
    yield from (path.with_name(f"estune-{number}-{path.name}") for number in itertools.count(2))


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.rstrip().encode(), digest_size=8).hexdigest()
