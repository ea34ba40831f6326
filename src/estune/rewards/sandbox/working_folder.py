"""An empty folder on disk for one program: made, measured while the program runs, and removed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MOST_FILES = 4096  # of one program: each takes room that its size does not include
_PREFIX = "estune-program-"
_LONG = 3600.0  # seconds after which no program can still be running
_LONGEST = 1024  # characters of a path: what lies much deeper cannot be read any more


@contextlib.contextmanager
def fresh_folder() -> Iterator[str]:
    """Yield the path of an empty folder, and remove it afterwards, whatever it holds."""
    _clear(tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    try:
        yield folder
    finally:
        _remove(folder)


@cache
def _clear(parent: str) -> None:
    """Remove, once per process, the folders of programs whose trainer was killed."""
    long_ago = time.time() - _LONG
    for path in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid == os.geteuid() and found.st_ctime < long_ago:
                _remove(str(path))


@dataclass(frozen=True)
class Size:
    """Bytes and entries of a folder."""

    size: int = 0
    entries: int = 0


def size_of(folder: str) -> Size:
    """Measure what lies in `folder`, as far as it can be read.

    In an endless folder, counting stops with more than MOST_FILES entries.
    """
    size, entries, folders = 0, 0, [folder]
    for each in folders:
        with contextlib.suppress(OSError), os.scandir(each) as found:
            for entry in found:
                entries += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        if entries > MOST_FILES or len(each) > _LONGEST:
            return Size(size, MOST_FILES + 1)
    return Size(size, entries)


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder)
    if os.path.lexists(folder):  # deeper than Python can go, or with closed folders inside
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
