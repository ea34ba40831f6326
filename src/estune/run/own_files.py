"""Files under names that people use too, such as README.md: estune replaces only what it wrote.

The last line of such a file is a comment with a checksum of the rest, so that a file which somebody
has edited since is left alone, too.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from estune.common.durable import write_text

logger = logging.getLogger(__name__)

_MARK = "written by estune, checksum "


def write_own(path: Path, text: str, comment: str) -> None:
    """Write `text` to `path`, or if that is somebody's, to another name beside it.

    `comment` turns a line into a comment of the file's language, for example `# {}`.
    """
    target = next(name for name in _names(path) if not name.exists() or is_own(name))
    if target != path:
        logger.warning(
            "%s was not written by estune and stays as it is; the run's is %s",
            path,
            target.name,
        )
    mark = f"{_MARK}{_checksum(text)}"
    write_text(target, f"{text}{comment.format(mark)}\n")


def own(path: Path) -> Path | None:
    """The file that `write_own` wrote for `path` last, if it is there."""
    there = itertools.takewhile(Path.exists, _names(path))
    return next(filter(is_own, there), None)


def was_own(path: Path) -> bool:
    """Whether estune wrote the file once, whoever has changed it since."""
    try:
        return _MARK in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def is_own(path: Path) -> bool:
    """Whether estune wrote the file, and nobody has changed it since."""
    try:
        text, _, last = path.read_text(encoding="utf-8").rstrip().rpartition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return f"{_MARK}{_checksum(text)}" in last


def _names(path: Path) -> Iterator[Path]:
    yield path
    yield path.with_name(f"estune-{path.name}")
    yield from (path.with_name(f"estune-{number}-{path.name}") for number in itertools.count(2))


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.rstrip().encode(), digest_size=8).hexdigest()
