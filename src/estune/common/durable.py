"""Writes that survive a kill or a power cut: a file or folder is there whole, or not at all; and one writer at a time."""

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
    """Hold `folder`, which `setting` gave, for this process; the system lets go of it however the process ends.

    Raises:
        ConfigError: another process has it.
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
                f"{setting}: {folder} is on a disk that cannot lock files ({error.strerror}); choose another"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait while another process is in such a block for the same folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        with suppress(OSError):  # some network disks lock no files: there nobody waits
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that takes its place when the block ends without an error."""
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
    """Delete `target`, which is gone at once: a kill leaves no half of it under its name."""
    scratch = target.with_name(f".{target.name}.tmp")
    if scratch.exists():
        shutil.rmtree(scratch)
    target.rename(scratch)
    shutil.rmtree(scratch)


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """A scratch file's path beside `target`; what the block writes there replaces `target` when it ends well."""
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
    """Replace `target` by `text`, durably."""
    with replaced_file(target) as scratch:
        scratch.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Ask the disk to have what `path`, a file or a folder, holds now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` a folder and all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise the OSError that libraries written in Rust wrap in kinds of their own when a disk is full, say."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
