"""Is there room? Memory and disk are checked before anything is loaded, with the amounts that are needed and there."""

import os
import shutil
from pathlib import Path

from estune.errors import ResourceError

_GIB = 1 << 30


def check_memory(needed: int, what: str) -> None:
    """Raises ResourceError when fewer than `needed` bytes of memory are available."""
    there = available_memory()
    if there < needed:
        raise ResourceError(
            f"memory: {what} need {needed / _GIB:.1f} GiB, {there / _GIB:.1f} GiB are available; "
            "use a smaller model, dtype bfloat16, or target_parameters"
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Raises ResourceError when `folder` cannot be written, or its disk has fewer than `needed` bytes free."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"output_dir: {folder} cannot be written ({error.strerror}); choose another") from None
    free = free_disk(folder)
    if free < needed:
        raise ResourceError(
            f"disk: {what} need {needed / _GIB:.1f} GiB in {folder}, {free / _GIB:.1f} GiB are free; "
            "choose another output_dir, or keep fewer with save_total_limit"
        )


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has left, or its container's limit if lower."""
    import psutil

    there = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return int(there)
    return int(there) if limit == "max" else int(min(there, int(limit) - used))


def free_disk(folder: Path) -> int:
    """Bytes free for this user on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
