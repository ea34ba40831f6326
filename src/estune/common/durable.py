"""Write files and folders so that a kill or a power cut leaves the old or the new content.

Also: lock a folder, so that only one process writes to it.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from estune.errors import ConfigError


@contextmanager
def locked(folder: Path, setting: str) -> Iterator[None]:
    """Lock the folder that `setting` names while the block runs; a killed process loses its lock.

    Raises:
        ConfigError: another process has locked it, or its disk cannot lock files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "unknown"
            raise ConfigError(
                f"{setting}: {folder} is in use by process {other}; wait for it or choose another"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{setting}: {folder} is on a disk that cannot lock files ({error.strerror}); "
                "choose another"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for `folder`; create the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        with suppress(OSError):  # some network disks cannot lock files; then nobody waits
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `target` if the block ends without an error."""
    scratch = target.with_name(f".{target.name}.tmp")
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    try:
        with disk_errors(target):
            yield scratch
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def remove_folder(target: Path) -> None:
    """Rename `target`, then delete it, so that a kill never leaves half a folder at `target`."""
    scratch = target.with_name(f".{target.name}.tmp")
    if scratch.exists():
        shutil.rmtree(scratch)
    target.rename(scratch)
    shutil.rmtree(scratch)


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces `target` if the block ends without an error."""
    scratch = target.with_name(f".{target.name}.tmp")
    try:
        with disk_errors(target):
            yield scratch
        sync(scratch)
        scratch.replace(target)
        sync(target.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_text(target: Path, text: str) -> None:
    """Replace the content of `target` by `text`, durably."""
    with replaced_file(target) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file or folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise OSError where a Rust library reports a disk error in its message, such as disk full."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
