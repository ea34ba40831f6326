"""Write files that the user may write too, such as README.md, without replacing the user's.

The last line that estune writes is a comment with a checksum of the rest. A file that somebody has
edited no longer matches its checksum, so it is not replaced.
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
    """Write `text` to `path`, or to another name next to it if somebody else wrote `path`.

    `comment` is the format of a comment in the file's language, for example `# {}`.
    """
    target = next(name for name in _names(path) if not name.exists() or _is_own(name))
    if target != path:
        logger.warning(
            "%s was not written by estune and stays as it is; see %s instead", path, target.name
        )
    mark = comment.format(_MARK + _checksum(text))
    write_text(target, f"{text}{mark}\n")


def own(path: Path) -> Path | None:
    """Return the file that `write_own` wrote for `path`; None if it is gone or was edited."""
    existing = itertools.takewhile(Path.exists, _names(path))
    return next(filter(_is_own, existing), None)


def was_own(path: Path) -> bool:
    """Whether estune wrote the file, even if somebody has edited it since."""
    return _MARK in _text(path)


def _is_own(path: Path) -> bool:
    text, _, last = _text(path).rstrip().rpartition("\n")
    return f"{_MARK}{_checksum(text)}" in last


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _names(path: Path) -> Iterator[Path]:
    """Yield `path` and the other names for it, in the order in which they are tried."""
    yield path
    yield path.with_name(f"estune-{path.name}")
    yield from (path.with_name(f"estune-{number}-{path.name}") for number in itertools.count(2))


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.rstrip().encode(), digest_size=8).hexdigest()
