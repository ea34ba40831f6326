"""Is there room? Memory and disk are checked before anything is loaded, with the amounts that are needed and there."""

import ctypes
import os
import shutil
from pathlib import Path

from estune.errors import ResourceError

_MIB, _GIB = 1 << 20, 1 << 30


def check_memory(needed: int, what: str) -> None:
    """Raises ResourceError when fewer than `needed` bytes of memory are available."""
    there = available_memory()
    if there < needed:
        raise ResourceError(
            f"memory: {what} need {amount(needed)}, {amount(there)} are available; "
            "use a smaller model, dtype bfloat16, or target_parameters"
        )


def check_disk(folder: Path, needed: int, what: str, setting: str = "output_dir") -> None:
    """Raises ResourceError when `folder`, which `setting` gave, cannot be written, or lacks `needed` free bytes on its disk."""
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
            f"choose another {setting}, or keep fewer with save_total_limit"
        )


def amount(size: int) -> str:
    """A number of bytes for people, in GiB, or in MiB when that would round to little or nothing."""
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.1f} MiB"


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has left, or its container if that is less."""
    import psutil

    there = int(psutil.virtual_memory().available)
    try:
        return min(there, _left_in_container())
    except (OSError, ValueError):  # there is none, or none with a limit
        return there


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """The limit less what is used, of which files that were read are no part: their pages are dropped when memory is wanted."""
    limit, used = (
        int((folder / name).read_text()) for name in ("memory.max", "memory.current")
    )  # "max" is no number
    kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return limit - used + int(kinds.get("active_file", 0)) + int(kinds.get("inactive_file", 0))


def free_disk(folder: Path) -> int:
    """Bytes free for this user on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back() -> None:
    """Return to the system what was freed: the C library of Linux keeps some of it, beside which the next peak would stand."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
