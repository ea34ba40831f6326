"""Measure memory, disk and cores, and refuse a run that needs more than there is."""

import ctypes
import os
import shutil
from pathlib import Path

from estune.errors import ResourceError

_MIB, _GIB = 1 << 20, 1 << 30


def check_memory(needed: int, what: str) -> None:
    """Raise ResourceError if fewer than `needed` bytes of memory are available."""
    available = available_memory()
    if available < needed:
        raise ResourceError(
            f"memory: {what} need {amount(needed)}, {amount(available)} are available; "
            "use a smaller model, dtype bfloat16, or target_parameters"
        )


def check_disk(
    folder: Path, needed: int, what: str, setting: str = "output_dir", advice: str = ""
) -> None:
    """Create `folder` and check that it can be written and that its disk has `needed` bytes free.

    Args:
        what: what is going to be written, for the error.
        setting: the setting or flag that named the folder.
        advice: what the user can do instead of choosing another folder.

    Raises:
        ResourceError: the folder cannot be written, or its disk is too full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"{setting}: {folder} cannot be written ({error.strerror}); choose another"
        ) from None
    free = free_disk(folder)
    if free < needed:
        raise ResourceError(
            f"disk: {what} need {amount(needed)} in {folder}, {amount(free)} are free; "
            f"choose another {setting}{advice and ', or '}{advice}"
        )


def amount(size: int) -> str:
    """Return a number of bytes as text in GiB, or in MiB below 1 GiB."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.1f} MiB"


def available_memory() -> int:
    """Return how many bytes this process can still allocate, also under its container's limit."""
    import psutil

    machine = int(psutil.virtual_memory().available)
    try:
        return min(machine, _left_in_container())
    except (OSError, ValueError):  # no container, or one without a limit
        return machine


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the container's limit minus its memory in use.

    Cached files don't count as used, because the kernel drops them when memory is short.

    Raises:
        OSError: this is not a container.
        ValueError: the container has no limit.
    """
    limit = int((folder / "memory.max").read_text())  # the text "max" means no limit
    used = int((folder / "memory.current").read_text())
    kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return limit - used + int(kinds.get("active_file", 0)) + int(kinds.get("inactive_file", 0))


def free_disk(folder: Path) -> int:
    """Return how many bytes are free for this user on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def release_freed_memory() -> None:
    """Give memory that this process has freed to the system; Linux's C library may keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
