"""An empty folder on disk for one program, its size while the program runs, and its end whatever
was put there.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

MOST_FILES = 4096  # that a program may have: each takes room that its size doesn't tell
_LONGEST = 1024  # characters of a path: what lies deeper can soon not be looked at any more


@contextlib.contextmanager
def fresh_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="estune-program-")
    try:
        yield folder
    finally:
        _remove(folder)


@dataclass(frozen=True)
class Size:
    """Bytes and entries of a folder."""

    size: int = 0
    entries: int = 0


def size_of(folder: str) -> Size:
    """What lies in `folder`, as far as it may be read. Counting ends, with too many entries, where
    there is no end.
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
    if os.path.lexists(folder):  # deeper than Python can go, or with folders that may not be read
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", folder], stderr=subprocess.DEVNULL, check=False)
