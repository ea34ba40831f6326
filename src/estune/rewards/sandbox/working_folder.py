"""Create an empty folder on disk for one program, measure it while the program runs, remove it."""

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

MAX_FILES = 4096  # per program; even an empty file occupies space on the disk
_PREFIX = "estune-program-"
_MAX_AGE = 3600.0  # seconds; no program runs longer than this
_MAX_PATH = 1024  # characters; the system cannot open much longer paths


@contextlib.contextmanager
def fresh_folder() -> Iterator[str]:
    """Yield the path of an empty folder, and remove it with its contents after the block."""
    _remove_old_folders(tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    try:
        yield folder
    finally:
        _remove(folder)


@cache
def _remove_old_folders(parent: str) -> None:
    """Remove folders that are left from killed trainers; the cache makes this once per process."""
    oldest = time.time() - _MAX_AGE
    for path in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid == os.geteuid() and found.st_ctime < oldest:
                _remove(str(path))


@dataclass(frozen=True)
class Size:
    """The size of a folder: its bytes on disk, and its number of files and folders."""

    size: int = 0
    entries: int = 0


def size_of(folder: str) -> Size:
    """Measure everything in `folder` that can be read.

    A program may create files and nested folders without end. So counting stops after MAX_FILES
    entries or at a very long path, and the result has more entries than are allowed.
    """
    size, entries, folders = 0, 0, [folder]
    for each in folders:  # `folders` grows during the loop
        with contextlib.suppress(OSError), os.scandir(each) as found:
            for entry in found:
                entries += 1
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        if entries > MAX_FILES or len(each) > _MAX_PATH:
            return Size(size, MAX_FILES + 1)
    return Size(size, entries)


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder)
    if os.path.lexists(folder):  # nested too deep for Python, or unreadable folders inside
        for command in (["chmod", "-R", "u+rwx", folder], ["rm", "-rf", folder]):
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
